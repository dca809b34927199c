// SPDX-License-Identifier: Apache-2.0
// The sources of all kernels (gpu/kernels/), embedded at build time: at run time nothing is read from a source tree.
#ifndef GEMMD_GPU_JIT_KERNEL_SOURCE_H_
#define GEMMD_GPU_JIT_KERNEL_SOURCE_H_

#include "absl/types/span.h"

namespace gemmd {

struct KernelSource {
  const char* name;  // As the sources include it: "gpu/kernels/tma.cuh".
  const char* text;
};

absl::Span<const KernelSource> EmbeddedKernelSources();

}  // namespace gemmd

#endif  // GEMMD_GPU_JIT_KERNEL_SOURCE_H_
