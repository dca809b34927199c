// SPDX-License-Identifier: Apache-2.0
// Aligned memory for intermediate values. One owner, one thread at a time.
#ifndef GEMMD_GPU_CPU_SCRATCH_H_
#define GEMMD_GPU_CPU_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace gemmd {

struct FreeScratch {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Scratch = std::unique_ptr<std::byte, FreeScratch>;

// At least `byte_size` bytes on a cache line, uninitialized; null if there is no memory.
inline Scratch AllocateScratch(uint64_t byte_size) {
  constexpr uint64_t kCacheLine = 64;
  return Scratch(
      static_cast<std::byte*>(std::aligned_alloc(kCacheLine, byte_size / kCacheLine * kCacheLine + kCacheLine)));
}

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_SCRATCH_H_
