// SPDX-License-Identifier: Apache-2.0
#include "gpu/memory_window.h"

#include <cstddef>

namespace gemmd {

MemoryWindow WindowOf(const Operand& operand) {
  MemoryWindow window{operand.region, operand.offset, operand.offset, 0, 0};
  const auto rank = static_cast<size_t>(operand.rank);
  const auto element = static_cast<uint64_t>(ByteSize(operand.dtype));
  uint64_t last = 0;  // Elements from the first to the last one.
  for (size_t i = 0; i < rank; ++i) {
    if (operand.shape[i] == 0) return window;
    last += static_cast<uint64_t>(operand.shape[i] - 1) * static_cast<uint64_t>(operand.strides[i]);
  }
  window.end = window.begin + (last + 1) * element;
  if (rank < 2) return window;

  // The dimension with stride 1 makes the runs; the other of the last two is the pitch (M-major scale factors have them
  // the other way round).
  const bool row_major = operand.strides[rank - 1] == 1;
  const size_t inner = row_major ? rank - 1 : rank - 2;
  const size_t outer = row_major ? rank - 2 : rank - 1;
  const auto pitch = static_cast<uint64_t>(operand.strides[outer]);
  const auto run = static_cast<uint64_t>(operand.shape[inner]);
  const bool one_pitch = rank == 2 || (pitch != 0 && static_cast<uint64_t>(operand.strides[0]) % pitch == 0);
  if (operand.strides[inner] == 1 && one_pitch && run <= pitch) {
    window.pitch = pitch * element;
    window.run = run * element;
  }
  return window;
}

bool Overlap(const MemoryWindow& a, const MemoryWindow& b) {
  if (a.region != b.region || a.empty() || b.empty()) return false;
  if (a.end <= b.begin || b.end <= a.begin) return false;
  if (a.pitch == 0 || a.pitch != b.pitch) return true;
  // Distance from the start of a run of `a` to the next start of a run of `b`, on the circle of one pitch.
  const uint64_t pitch = a.pitch;
  const uint64_t distance = (b.begin % pitch + pitch - a.begin % pitch) % pitch;
  return distance < a.run || distance + b.run > pitch;
}

}  // namespace gemmd
