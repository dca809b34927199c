// SPDX-License-Identifier: Apache-2.0
// CUDA's error codes as Status: the only place that translates them.
#ifndef GEMMD_GPU_CUDA_STATUS_H_
#define GEMMD_GPU_CUDA_STATUS_H_

#include "proto/worker_counters.h"

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include <cuda.h>
#include <cuda_runtime_api.h>

namespace gemmd {

// Whether the error has destroyed the process's CUDA context: every later call fails, and only a new process helps.
bool IsSticky(cudaError_t error);

// What it means for an operator.
DeviceErrorClass ErrorClassOf(cudaError_t error);

// OK for cudaSuccess. Out of memory: RESOURCE_EXHAUSTED. No usable device or driver: FAILED_PRECONDITION. Illegal
// arguments: INVALID_ARGUMENT. Sticky errors: DATA_LOSS. Else INTERNAL. `what` says what was being done. CudaErrorOf
// finds the error again.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

// The same for the driver API.
absl::Status CudaStatus(CUresult result, absl::string_view what);

// The error that a status was made from; cudaSuccess if it was made otherwise.
cudaError_t CudaErrorOf(const absl::Status& status);

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_STATUS_H_
