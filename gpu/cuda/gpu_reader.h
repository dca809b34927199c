// SPDX-License-Identifier: Apache-2.0
// Small arrays of GPU memory on their way to the host (DeviceMemory::ReadBytes). A copy engine would serve them after
// the results that running batches send back, up to milliseconds later; a kernel of single warps, which finds room
// beside a GEMM that has every SM, writes them to page-locked memory at once. Worker's loop only.
#ifndef GEMMD_GPU_CUDA_GPU_READER_H_
#define GEMMD_GPU_CUDA_GPU_READER_H_

#include "gpu/cuda/gemm_launcher.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace gemmd {

class GpuReader {
 public:
  // `launcher`, which must outlive the reader, launches on this device. `failed` gets every error of Read, too.
  static absl::StatusOr<std::unique_ptr<GpuReader>> Open(GemmLauncher& launcher, int device,
                                                         std::function<void(const absl::Status&)> failed);
  ~GpuReader();
  GpuReader(const GpuReader&) = delete;
  GpuReader& operator=(const GpuReader&) = delete;

  int device() const { return device_; }

  // Copies bytes of the GPU's memory, 256 KiB at a time. Waits for that alone, not for what other streams do.
  absl::Status Read(const char* from, uint64_t byte_size, void* to);

 private:
  GpuReader(GemmLauncher& launcher, int device, std::function<void(const absl::Status&)> failed);

  // To buffer_.
  absl::Status ReadWords(const char* from, uint64_t words);

  GemmLauncher& launcher_;
  const int device_;
  const std::function<void(const absl::Status&)> failed_;
  cudaStream_t stream_ = nullptr;
  char* buffer_ = nullptr;  // Page-locked; host and GPU know it by this address.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_GPU_READER_H_
