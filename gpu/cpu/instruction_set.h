// SPDX-License-Identifier: Apache-2.0
// Which vector instructions the element conversions use. The programs are built for baseline x86-64 and choose at run
// time; every choice gives the same bits.
#ifndef GEMMD_GPU_CPU_INSTRUCTION_SET_H_
#define GEMMD_GPU_CPU_INSTRUCTION_SET_H_

#include <cstdint>

#if defined(__x86_64__)
#define GEMMD_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define GEMMD_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#endif

namespace gemmd {

enum class InstructionSet : uint8_t { kPortable, kAvx2, kAvx512 };

// The best one of this processor.
inline InstructionSet BestInstructionSet() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return InstructionSet::kAvx512;
  }
  // Every processor with AVX2 has F16C.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::kAvx2;
#endif
  return InstructionSet::kPortable;
}

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_INSTRUCTION_SET_H_
