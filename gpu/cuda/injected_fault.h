// SPDX-License-Identifier: Apache-2.0
// Kernels that fail on purpose, for tests of what must survive them.
#ifndef GEMMD_GPU_CUDA_INJECTED_FAULT_H_
#define GEMMD_GPU_CUDA_INJECTED_FAULT_H_

#include "gpu/device.h"

#include "absl/status/status.h"
#include <cuda_runtime_api.h>

namespace gemmd {

// Puts a kernel into `stream` that writes to address 0, or one that never ends. Compiles it first (0.2 s).
absl::Status LaunchFault(DeviceFault fault, cudaStream_t stream);

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_INJECTED_FAULT_H_
