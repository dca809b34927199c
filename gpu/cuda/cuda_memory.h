// SPDX-License-Identifier: Apache-2.0
// Memory that the CUDA device reaches: host regions, page-locked for DMA; allocations on the GPU that live as long as
// somebody holds their descriptor, this worker's own and clients'; and clients' allocations by legacy IPC handle. Each
// object belongs to one GPU. Any thread; but ReadBytes of GPU memory, as GpuReader, is the worker's loop's.
#ifndef GEMMD_GPU_CUDA_CUDA_MEMORY_H_
#define GEMMD_GPU_CUDA_CUDA_MEMORY_H_

#include "gpu/cuda/driver.h"
#include "gpu/cuda/gpu_reader.h"
#include "gpu/device.h"
#include "proto/shared_memory.h"
#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace gemmd {

// A DeviceMemory with an address that kernels (on_device) or copies can use.
class CudaMemory : public DeviceMemory {
 public:
  uint64_t byte_size() const override { return byte_size_; }
  char* address() const { return address_; }
  // OUT_OF_RANGE if the memory has become smaller than it was registered.
  virtual absl::Status CheckStillThere() const { return absl::OkStatus(); }
  bool on_device() const override { return reader_ != nullptr; }
  // Of GPU memory; that of the host is read otherwise.
  absl::Status ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const override;

 protected:
  // `reader`: of the GPU whose memory it is; null for the host's.
  CudaMemory(uint64_t byte_size, GpuReader* reader) : byte_size_(byte_size), reader_(reader) {}

  absl::Status CheckRange(uint64_t offset, uint64_t byte_size) const;

  char* address_ = nullptr;

 private:
  uint64_t byte_size_;
  GpuReader* reader_;
};

// Shared memory of the host, mapped and page-locked. An unsealed object (RegionKind::kSharedMemory) may be truncated by
// its owner: its pages stay while they are locked, so DMA is safe, but the mapping is never touched by this process.
class HostMemory : public CudaMemory {
 public:
  // Errors: INVALID_ARGUMENT (not the right kind of descriptor, too short), RESOURCE_EXHAUSTED (no page-locked memory).
  static absl::StatusOr<std::shared_ptr<HostMemory>> Open(const RegionSpec& spec, UniqueFd fd);
  ~HostMemory() override;
  absl::Status CheckStillThere() const override;
  absl::Status ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const override;

 private:
  HostMemory(uint64_t byte_size, SharedMapping mapping, UniqueFd fd);

  SharedMapping mapping_;
  UniqueFd fd_;  // Unsealed objects only: small reads go through it.
  bool locked_ = false;
};

// Memory of the GPU, made by the driver's virtual memory management so that a descriptor of it can pass between
// processes. On the GPU of `reader`, which reads it for the host.
class GpuMemory : public CudaMemory {
 public:
  // Zeroed. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::shared_ptr<GpuMemory>> Allocate(const Driver& driver, GpuReader& reader,
                                                             uint64_t byte_size);

  // Memory of another process, of at least spec.byte_size bytes rounded up to granules of 2 MiB, mapped with
  // spec.access: a kernel cannot write what a client lent for reading. Errors: INVALID_ARGUMENT (no descriptor of CUDA
  // memory, another GPU's, too short), RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::shared_ptr<GpuMemory>> Import(const Driver& driver, GpuReader& reader,
                                                           const RegionSpec& spec, UniqueFd fd);

  ~GpuMemory() override;
  absl::StatusOr<UniqueFd> Export() const;

 private:
  GpuMemory(const Driver& driver, GpuReader& reader, uint64_t byte_size)
      : CudaMemory(byte_size, &reader), driver_(driver) {}
  absl::Status CheckHandle(int device) const;
  absl::Status MapHandle(int device, uint64_t mapped_bytes, Access requested);

  const Driver driver_;
  CUmemGenericAllocationHandle handle_ = 0;
  bool has_handle_ = false;
  uint64_t reserved_bytes_ = 0;
  bool mapped_ = false;
};

// A part of an allocation that a client made with cudaMalloc. The mapping is always writable: CUDA has no other. Ends
// with the client's allocation, and must not be used after it; the driver then reports errors, or worse.
class IpcGpuMemory : public CudaMemory {
 public:
  // Errors: INVALID_ARGUMENT (a handle that CUDA does not know, another GPU's, a wrong size), FAILED_PRECONDITION (the
  // client has this process's number in another PID namespace, which CUDA confuses), RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::shared_ptr<IpcGpuMemory>> Open(const Driver& driver, GpuReader& reader,
                                                            const RegionSpec& spec);
  ~IpcGpuMemory() override;

 private:
  IpcGpuMemory(GpuReader& reader, uint64_t byte_size) : CudaMemory(byte_size, &reader) {}

  void* allocation_ = nullptr;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_CUDA_MEMORY_H_
