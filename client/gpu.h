// SPDX-License-Identifier: Apache-2.0
// A GPU of this machine as a client sees it: memory that can be shared with gemmd, and plain copies from and to it.
// Works on the GPU's primary context, which is the CUDA runtime's and PyTorch's too, so their addresses are valid here
// and these there. Programs that share host memory only need none of it.
#ifndef GEMMD_CLIENT_GPU_H_
#define GEMMD_CLIENT_GPU_H_

#include "client/cuda_driver.h"
#include "proto/gpu_memory.h"
#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace gemmd {

class GpuAllocation;

// Thread-safe. Allocations keep it.
class Gpu : public std::enable_shared_from_this<Gpu> {
 public:
  // The GPU `uuid` ("GPU-...", as nvidia-smi and gemmctl info print it), or the first one. Errors: FAILED_PRECONDITION
  // (no driver, no GPU), NOT_FOUND (no such GPU visible to this process).
  static absl::StatusOr<std::shared_ptr<Gpu>> Open(absl::string_view uuid = "");
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu();

  const std::string& uuid() const { return uuid_; }

  // New, zeroed memory that has a descriptor (CUDA virtual memory management), in whole granules of 2 MiB.
  // Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<GpuAllocation> Allocate(uint64_t byte_size);

  // As cudaMalloc does. Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<GpuAllocation> AllocateLegacy(uint64_t byte_size);

  // Maps memory of another process that its descriptor names. Errors: INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
  absl::StatusOr<GpuAllocation> Import(const UniqueFd& fd, uint64_t byte_size);

  // How gemmd finds [address, address + byte_size), which cudaMalloc gave this process, or is part of what it gave.
  // Errors: INVALID_ARGUMENT (not memory of this GPU, or beyond the end of its allocation), FAILED_PRECONDITION (memory
  // that has no legacy handle: made by cuMemCreate or a memory pool, as PyTorch does with expandable_segments).
  absl::StatusOr<IpcMemory> Describe(const void* address, uint64_t byte_size) const;

  // Copies `byte_size` bytes and waits until they are there, for other processes too. Either address may be of any
  // allocation on this GPU.
  absl::Status CopyToGpu(void* gpu, const void* host, uint64_t byte_size) const;
  absl::Status CopyToHost(void* host, const void* gpu, uint64_t byte_size) const;

  // Waits for all that this process has started on the GPU. Client's calls do so for the GPUs of their operands, unless
  // told not to (ConnectOptions::synchronize).
  absl::Status Synchronize() const;

 private:
  friend class GpuAllocation;
  class Current;

  Gpu(std::shared_ptr<const CudaDriver> driver, int device, std::string uuid)
      : driver_(std::move(driver)), device_(device), uuid_(std::move(uuid)) {}
  absl::Status Map(GpuAllocation* allocation, uint64_t mapped_bytes) const;
  absl::StatusOr<uint64_t> RoundToGranule(uint64_t byte_size) const;
  void Free(const GpuAllocation& allocation) const;

  const std::shared_ptr<const CudaDriver> driver_;
  const int device_;
  const std::string uuid_;
  cuda::Context context_ = nullptr;
};

// Memory on a GPU; freed, or unmapped if it was imported, by the destructor, after all that this process has started on
// the GPU. Move-only.
class GpuAllocation {
 public:
  GpuAllocation() = default;
  GpuAllocation(GpuAllocation&& other) noexcept { *this = std::move(other); }
  GpuAllocation& operator=(GpuAllocation&& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(address_, other.address_);
    std::swap(byte_size_, other.byte_size_);
    std::swap(handle_, other.handle_);
    std::swap(reserved_bytes_, other.reserved_bytes_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  GpuAllocation(const GpuAllocation&) = delete;
  GpuAllocation& operator=(const GpuAllocation&) = delete;
  ~GpuAllocation() {
    if (gpu_ != nullptr) gpu_->Free(*this);
  }

  void* data() const { return reinterpret_cast<void*>(static_cast<uintptr_t>(address_)); }
  uint64_t byte_size() const { return byte_size_; }
  const std::shared_ptr<const Gpu>& gpu() const { return gpu_; }

  // A descriptor of memory made by Gpu::Allocate. Errors: INVALID_ARGUMENT (other memory).
  absl::StatusOr<UniqueFd> Export() const;

 private:
  friend class Gpu;

  std::shared_ptr<const Gpu> gpu_;
  cuda::Address address_ = 0;
  uint64_t byte_size_ = 0;
  cuda::MemoryHandle handle_ = 0;  // 0: legacy memory.
  uint64_t reserved_bytes_ = 0;
  bool mapped_ = false;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_GPU_H_
