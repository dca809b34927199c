// SPDX-License-Identifier: Apache-2.0
// The bytes of a region that an operand covers, as far as overlap is concerned. Used by the job check (an output
// against the job's own inputs) and by InFlightOutputs (an output against those of other jobs). Pure values.
#ifndef GEMMD_GPU_MEMORY_WINDOW_H_
#define GEMMD_GPU_MEMORY_WINDOW_H_

#include "gpu/job.h"

#include <cstdint>

namespace gemmd {

// Runs of `run` bytes whose starts are `begin` plus multiples of `pitch`, all of them inside [begin, end). Bytes from
// the start of the region. pitch 0: one solid stretch (or runs that have no common pitch, taken as one).
struct MemoryWindow {
  uint64_t region = 0;
  uint64_t begin = 0;
  uint64_t end = 0;  // begin == end: no bytes at all.
  uint64_t pitch = 0;
  uint64_t run = 0;

  bool empty() const { return begin == end; }
  friend bool operator==(const MemoryWindow&, const MemoryWindow&) = default;
};

// Requires: a checked operand (or one whose window is known not to overflow).
MemoryWindow WindowOf(const Operand& operand);

// True if the windows may share a byte. Exact for windows of one pitch (column ranges of one matrix do not overlap);
// otherwise conservative, by the stretch from first to last byte. Windows of different regions never overlap.
bool Overlap(const MemoryWindow& a, const MemoryWindow& b);

}  // namespace gemmd

#endif  // GEMMD_GPU_MEMORY_WINDOW_H_
