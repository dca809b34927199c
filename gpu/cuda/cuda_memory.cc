// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_memory.h"

#include "gpu/cuda_status.h"

#include "absl/strings/str_cat.h"
#include <cuda_runtime_api.h>

#include <cerrno>
#include <cstring>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

CUmemAllocationProp PropertiesFor(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return properties;
}

// Physical memory comes in whole granules (2 MiB).
absl::StatusOr<uint64_t> RoundToGranule(const Driver& driver, int device, uint64_t byte_size) {
  const CUmemAllocationProp properties = PropertiesFor(device);
  size_t granule = 0;
  const CUresult result = driver.mem_granularity(&granule, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (absl::Status status = CudaStatus(result, "allocation granularity"); !status.ok()) return status;
  return (byte_size + granule - 1) / granule * granule;
}

absl::Status CheckUnsealed(int fd, uint64_t byte_size) {
  struct stat status {};
  if (fstat(fd, &status) != 0) return absl::ErrnoToStatus(errno, "descriptor: fstat");
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError("descriptor: expected shared memory, got another type of file");
  }
  if (static_cast<uint64_t>(status.st_size) < byte_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor: expected at least ", byte_size, " bytes, got ", status.st_size));
  }
  return absl::OkStatus();
}

absl::Status IpcStatus(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return absl::OkStatus();
    case cudaErrorDeviceUninitialized:
      return SamePidNumber();
    case cudaErrorInvalidValue:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorMapBufferObjectFailed:
      return absl::InvalidArgumentError(absl::StrCat(
          "ipc.handle: expected one of memory that cudaMalloc gave a living process of this machine, got one that CUDA "
          "does not open (",
          cudaGetErrorName(error), "): freed, from a process that ended, or of another machine"));
    default:
      return CudaStatus(error, "opening a client's GPU memory");
  }
}

}  // namespace

absl::Status CudaMemory::CheckRange(uint64_t offset, uint64_t byte_size) const {
  if (byte_size <= byte_size_ && offset <= byte_size_ - byte_size) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("region: expected at most ", byte_size_, " bytes"));
}

absl::Status CudaMemory::ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const {
  if (absl::Status status = CheckRange(offset, byte_size); !status.ok()) return status;
  return reader_->Read(address_ + offset, byte_size, destination);
}

HostMemory::HostMemory(uint64_t byte_size, SharedMapping mapping, UniqueFd fd)
    : CudaMemory(byte_size, nullptr), mapping_(std::move(mapping)), fd_(std::move(fd)) {
  address_ = reinterpret_cast<char*>(mapping_.data());
}

absl::StatusOr<std::shared_ptr<HostMemory>> HostMemory::Open(const RegionSpec& spec, UniqueFd fd) {
  if (spec.byte_size == 0) return absl::InvalidArgumentError("region: expected at least 1 byte, got 0");
  const bool sealed = spec.kind != RegionKind::kSharedMemory;
  absl::Status status = sealed ? CheckSealedMemory(fd.get(), spec.byte_size) : CheckUnsealed(fd.get(), spec.byte_size);
  if (!status.ok()) return status;
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd.get(), spec.byte_size, spec.access);
  if (!mapping.ok()) return mapping.status();
  std::shared_ptr<HostMemory> memory(
      new HostMemory(spec.byte_size, *std::move(mapping), sealed ? UniqueFd() : std::move(fd)));
  unsigned flags = cudaHostRegisterPortable;
  if (spec.access == Access::kReadOnly) flags |= cudaHostRegisterReadOnly;
  const cudaError_t error = cudaHostRegister(memory->address_, spec.byte_size, flags);
  memory->locked_ = error == cudaSuccess;
  if (memory->locked_) return memory;
  cudaGetLastError();  // Not sticky; the next call must not report it.
  // Copies from pageable memory are slower but right. They read the mapping with the CPU, which an unsealed object that
  // was truncated would answer with SIGBUS.
  if (sealed && !IsSticky(error)) return memory;
  return absl::ResourceExhaustedError(
      absl::StrCat("region: page-locking ", spec.byte_size, " bytes: ", cudaGetErrorName(error)));
}

HostMemory::~HostMemory() {
  if (locked_) cudaHostUnregister(address_);
}

absl::Status HostMemory::CheckStillThere() const {
  if (!fd_.valid()) return absl::OkStatus();
  struct stat status {};
  if (fstat(fd_.get(), &status) != 0) return absl::ErrnoToStatus(errno, "descriptor: fstat");
  if (static_cast<uint64_t>(status.st_size) >= byte_size()) return absl::OkStatus();
  return absl::OutOfRangeError("region: the shared-memory object became smaller than it was registered");
}

absl::Status HostMemory::ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const {
  if (absl::Status status = CheckRange(offset, byte_size); !status.ok()) return status;
  if (!fd_.valid()) {
    std::memcpy(destination, address_ + offset, byte_size);
    return absl::OkStatus();
  }
  char* out = static_cast<char*>(destination);
  while (byte_size > 0) {
    const ssize_t count = pread(fd_.get(), out, byte_size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "region: pread");
    if (count == 0) {
      return absl::OutOfRangeError("region: the shared-memory object became smaller than it was registered");
    }
    out += count;
    offset += static_cast<uint64_t>(count);
    byte_size -= static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<GpuMemory>> GpuMemory::Allocate(const Driver& driver, GpuReader& reader,
                                                               uint64_t byte_size) {
  const int device = reader.device();
  absl::StatusOr<uint64_t> bytes = RoundToGranule(driver, device, byte_size);
  if (!bytes.ok()) return bytes.status();
  std::shared_ptr<GpuMemory> memory(new GpuMemory(driver, reader, byte_size));
  const CUmemAllocationProp properties = PropertiesFor(device);
  absl::Status status =
      CudaStatus(driver.mem_create(&memory->handle_, *bytes, &properties, 0), "allocating GPU memory");
  if (!status.ok()) return status;
  memory->has_handle_ = true;
  if (status = memory->MapHandle(device, *bytes, Access::kReadWrite); !status.ok()) return status;
  status = CudaStatus(cudaMemset(memory->address_, 0, *bytes), "clearing GPU memory");
  if (status.ok()) status = CudaStatus(cudaStreamSynchronize(nullptr), "clearing GPU memory");
  if (!status.ok()) return status;
  return memory;
}

absl::StatusOr<std::shared_ptr<GpuMemory>> GpuMemory::Import(const Driver& driver, GpuReader& reader,
                                                             const RegionSpec& spec, UniqueFd fd) {
  const int device = reader.device();
  absl::StatusOr<uint64_t> bytes = RoundToGranule(driver, device, spec.byte_size);
  if (!bytes.ok()) return bytes.status();
  std::shared_ptr<GpuMemory> memory(new GpuMemory(driver, reader, spec.byte_size));
  void* descriptor = reinterpret_cast<void*>(static_cast<intptr_t>(fd.get()));
  const CUresult result = driver.mem_import(&memory->handle_, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (absl::Status status = CudaStatus(result, "importing GPU memory"); !status.ok()) {
    if (absl::IsResourceExhausted(status)) return status;
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor: expected one of a CUDA allocation: ", status.message()));
  }
  memory->has_handle_ = true;
  if (absl::Status status = memory->CheckHandle(device); !status.ok()) return status;
  absl::Status status = memory->MapHandle(device, *bytes, spec.access);
  if (absl::IsInvalidArgument(status)) {
    return absl::InvalidArgumentError(absl::StrCat("byte_size: expected at most that of the allocation, got ",
                                                   spec.byte_size, ": ", status.message()));
  }
  if (!status.ok()) return status;
  return memory;
}

// Kernels reach memory of this GPU; that of another, or of the host, would be mapped too but is not what was meant.
absl::Status GpuMemory::CheckHandle(int device) const {
  CUmemAllocationProp properties = {};
  const CUresult result = driver_.mem_properties(&properties, handle_);
  if (absl::Status status = CudaStatus(result, "reading properties of GPU memory"); !status.ok()) return status;
  if (properties.location.type == CU_MEM_LOCATION_TYPE_DEVICE && properties.location.id == device) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("descriptor: expected memory of the GPU that `gpu` names, got another's");
}

absl::Status GpuMemory::MapHandle(int device, uint64_t mapped_bytes, Access requested) {
  CUdeviceptr address = 0;
  absl::Status status = CudaStatus(driver_.mem_address_reserve(&address, mapped_bytes, 0, 0, 0), "reserving addresses");
  if (!status.ok()) return status;
  address_ = reinterpret_cast<char*>(address);
  reserved_bytes_ = mapped_bytes;
  if (status = CudaStatus(driver_.mem_map(address, mapped_bytes, 0, handle_, 0), "mapping GPU memory"); !status.ok())
    return status;
  mapped_ = true;
  CUmemAccessDesc access = {};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = requested == Access::kReadWrite ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ;
  return CudaStatus(driver_.mem_set_access(address, mapped_bytes, &access, 1), "opening GPU memory");
}

GpuMemory::~GpuMemory() {
  const CUdeviceptr address = reinterpret_cast<CUdeviceptr>(address_);
  if (mapped_) driver_.mem_unmap(address, reserved_bytes_);
  if (reserved_bytes_ > 0) driver_.mem_address_free(address, reserved_bytes_);
  if (has_handle_) driver_.mem_release(handle_);
}

absl::StatusOr<UniqueFd> GpuMemory::Export() const {
  int fd = -1;
  const CUresult result = driver_.mem_export(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  if (absl::Status status = CudaStatus(result, "exporting GPU memory"); !status.ok()) return status;
  return UniqueFd(fd);
}

absl::StatusOr<std::shared_ptr<IpcGpuMemory>> IpcGpuMemory::Open(const Driver& driver, GpuReader& reader,
                                                                 const RegionSpec& spec) {
  if (absl::Status status = CheckOwner(spec.ipc); !status.ok()) return status;
  std::shared_ptr<IpcGpuMemory> memory(new IpcGpuMemory(reader, spec.byte_size));
  cudaIpcMemHandle_t handle;
  static_assert(sizeof(handle) == sizeof(spec.ipc.handle));
  std::memcpy(&handle, spec.ipc.handle, sizeof(handle));
  const cudaError_t error = cudaIpcOpenMemHandle(&memory->allocation_, handle, cudaIpcMemLazyEnablePeerAccess);
  if (error != cudaSuccess) {
    if (!IsSticky(error)) cudaGetLastError();
    memory->allocation_ = nullptr;
    return IpcStatus(error);
  }
  cudaPointerAttributes attributes = {};
  CUdeviceptr base = 0;
  size_t allocation_bytes = 0;
  absl::Status status = CudaStatus(cudaPointerGetAttributes(&attributes, memory->allocation_), "a client's GPU memory");
  status.Update(
      CudaStatus(driver.mem_address_range(&base, &allocation_bytes, reinterpret_cast<CUdeviceptr>(memory->allocation_)),
                 "a client's GPU memory"));
  if (!status.ok()) return status;
  if (attributes.device != reader.device()) {
    return absl::InvalidArgumentError("ipc.handle: expected memory of the GPU that `gpu` names, got another's");
  }
  if (allocation_bytes != spec.ipc.allocation_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("ipc.allocation_bytes: expected that of the allocation, ",
                                                   allocation_bytes, ", got ", spec.ipc.allocation_bytes));
  }
  // The front end has checked that the region lies inside.
  memory->address_ = static_cast<char*>(memory->allocation_) + spec.ipc.offset;
  return memory;
}

// CUDA counts how often an allocation is open in this process.
IpcGpuMemory::~IpcGpuMemory() {
  if (allocation_ != nullptr) cudaIpcCloseMemHandle(allocation_);
}

}  // namespace gemmd
