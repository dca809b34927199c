// SPDX-License-Identifier: Apache-2.0
#include "client/gpu.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include <cstring>
#include <unistd.h>

namespace gemmd {
namespace {

std::string UuidText(const cuda::Uuid& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    absl::StrAppend(&text, i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", absl::StrFormat("%02x", uuid.bytes[i]));
  }
  return text;
}

cuda::AllocationProperties PropertiesFor(int device) {
  cuda::AllocationProperties properties;
  properties.type = cuda::kPinned;
  properties.handle_types = cuda::kPosixDescriptor;
  properties.location = {cuda::kOnDevice, device};
  return properties;
}

cuda::Address AddressOf(const void* data) { return static_cast<cuda::Address>(reinterpret_cast<uintptr_t>(data)); }

}  // namespace

// Makes the primary context the thread's current one for as long as it lives.
class Gpu::Current {
 public:
  explicit Current(const Gpu& gpu) : driver_(*gpu.driver_) { driver_.context_push(gpu.context_); }
  ~Current() {
    cuda::Context context = nullptr;
    driver_.context_pop(&context);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const CudaDriver& driver_;
};

absl::StatusOr<std::shared_ptr<Gpu>> Gpu::Open(absl::string_view uuid) {
  absl::StatusOr<std::shared_ptr<const CudaDriver>> driver = CudaDriver::Load();
  if (!driver.ok()) return driver.status();
  int count = 0;
  if (absl::Status status = (*driver)->StatusOf((*driver)->device_count(&count), "counting GPUs"); !status.ok()) {
    return status;
  }
  if (count == 0) return absl::FailedPreconditionError("this process sees no GPU");
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    int device = 0;
    cuda::Uuid found;
    absl::Status status = (*driver)->StatusOf((*driver)->device_get(&device, ordinal), "opening a GPU");
    status.Update((*driver)->StatusOf((*driver)->device_uuid(&found, device), "reading the UUID of a GPU"));
    if (!status.ok()) return status;
    if (!uuid.empty() && UuidText(found) != uuid) continue;
    auto gpu = std::shared_ptr<Gpu>(new Gpu(*driver, device, UuidText(found)));
    status = (*driver)->StatusOf((*driver)->primary_context_retain(&gpu->context_, device), "opening a GPU");
    if (!status.ok()) return status;
    return gpu;
  }
  return absl::NotFoundError(absl::StrCat("no GPU ", uuid, " among the ", count, " that this process sees"));
}

Gpu::~Gpu() {
  if (context_ != nullptr) driver_->primary_context_release(device_);
}

absl::StatusOr<uint64_t> Gpu::RoundToGranule(uint64_t byte_size) const {
  const cuda::AllocationProperties properties = PropertiesFor(device_);
  size_t granule = 0;
  const int result = driver_->granularity(&granule, &properties, cuda::kMinimum);
  if (absl::Status status = driver_->StatusOf(result, "allocation granularity"); !status.ok()) return status;
  return (byte_size + granule - 1) / granule * granule;
}

absl::StatusOr<GpuAllocation> Gpu::Allocate(uint64_t byte_size) {
  const Current current(*this);
  absl::StatusOr<uint64_t> bytes = RoundToGranule(byte_size);
  if (!bytes.ok()) return bytes.status();
  GpuAllocation allocation;
  allocation.gpu_ = shared_from_this();
  allocation.byte_size_ = byte_size;
  const cuda::AllocationProperties properties = PropertiesFor(device_);
  const int result = driver_->memory_create(&allocation.handle_, *bytes, &properties, 0);
  if (absl::Status status = driver_->StatusOf(result, "allocating GPU memory"); !status.ok()) return status;
  if (absl::Status status = Map(&allocation, *bytes); !status.ok()) return status;
  absl::Status status = driver_->StatusOf(driver_->set_bytes(allocation.address_, 0, *bytes), "clearing GPU memory");
  status.Update(driver_->StatusOf(driver_->context_synchronize(), "clearing GPU memory"));
  if (!status.ok()) return status;
  return allocation;
}

absl::StatusOr<GpuAllocation> Gpu::AllocateLegacy(uint64_t byte_size) {
  const Current current(*this);
  GpuAllocation allocation;
  allocation.byte_size_ = byte_size;
  const int result = driver_->allocate(&allocation.address_, byte_size);
  if (absl::Status status = driver_->StatusOf(result, "allocating GPU memory"); !status.ok()) return status;
  allocation.gpu_ = shared_from_this();
  return allocation;
}

absl::StatusOr<GpuAllocation> Gpu::Import(const UniqueFd& fd, uint64_t byte_size) {
  const Current current(*this);
  absl::StatusOr<uint64_t> bytes = RoundToGranule(byte_size);
  if (!bytes.ok()) return bytes.status();
  GpuAllocation allocation;
  allocation.gpu_ = shared_from_this();
  allocation.byte_size_ = byte_size;
  void* const descriptor = reinterpret_cast<void*>(static_cast<intptr_t>(fd.get()));
  const int result = driver_->import_handle(&allocation.handle_, descriptor, cuda::kPosixDescriptor);
  if (absl::Status status = driver_->StatusOf(result, "importing GPU memory"); !status.ok()) return status;
  if (absl::Status status = Map(&allocation, *bytes); !status.ok()) return status;
  return allocation;
}

absl::Status Gpu::Map(GpuAllocation* allocation, uint64_t mapped_bytes) const {
  int result = driver_->address_reserve(&allocation->address_, mapped_bytes, 0, 0, 0);
  if (absl::Status status = driver_->StatusOf(result, "reserving addresses"); !status.ok()) return status;
  allocation->reserved_bytes_ = mapped_bytes;
  result = driver_->map(allocation->address_, mapped_bytes, 0, allocation->handle_, 0);
  if (absl::Status status = driver_->StatusOf(result, "mapping GPU memory"); !status.ok()) return status;
  allocation->mapped_ = true;
  const cuda::Access access{{cuda::kOnDevice, device_}, cuda::kReadWrite};
  return driver_->StatusOf(driver_->set_access(allocation->address_, mapped_bytes, &access, 1), "opening GPU memory");
}

void Gpu::Free(const GpuAllocation& allocation) const {
  const Current current(*this);
  if (allocation.handle_ == 0 && allocation.reserved_bytes_ == 0) {
    if (allocation.address_ != 0) driver_->free(allocation.address_);  // Waits for kernels under way by itself.
    return;
  }
  if (allocation.mapped_) driver_->context_synchronize();
  if (allocation.mapped_) driver_->unmap(allocation.address_, allocation.reserved_bytes_);
  if (allocation.reserved_bytes_ > 0) driver_->address_free(allocation.address_, allocation.reserved_bytes_);
  driver_->memory_release(allocation.handle_);
}

absl::StatusOr<IpcMemory> Gpu::Describe(const void* address, uint64_t byte_size) const {
  const Current current(*this);
  int device = -1;
  int result = driver_->pointer_attribute(&device, cuda::kDeviceOrdinal, AddressOf(address));
  if (result != cuda::kSuccess || device != device_) {
    return absl::InvalidArgumentError(absl::StrCat("address: expected memory of ", uuid_, ", got other memory"));
  }
  cuda::Address base = 0;
  size_t allocation_bytes = 0;
  result = driver_->address_range(&base, &allocation_bytes, AddressOf(address));
  if (absl::Status status = driver_->StatusOf(result, "finding the allocation"); !status.ok()) return status;
  IpcMemory ipc;
  ipc.allocation_bytes = allocation_bytes;
  ipc.offset = AddressOf(address) - base;
  if (byte_size > allocation_bytes - ipc.offset) {
    return absl::InvalidArgumentError(absl::StrCat("byte_size: expected at most ", allocation_bytes - ipc.offset,
                                                   " up to the end of the allocation, got ", byte_size));
  }
  cuda::IpcHandle handle;
  result = driver_->ipc_handle(&handle, base);
  if (result != cuda::kSuccess) {
    return absl::FailedPreconditionError(absl::StrCat(
        driver_->StatusOf(result, "address: no legacy IPC handle").message(),
        "; expected memory of cudaMalloc. Memory of cuMemCreate (PyTorch with expandable_segments) and of memory pools "
        "has none: use memory of Client::CreateDeviceRegion, or a pool of gemmd"));
  }
  std::memcpy(ipc.handle, handle.bytes, sizeof(ipc.handle));
  ipc.pid = getpid();
  ipc.pid_namespace = PidNamespace();
  return ipc;
}

absl::Status Gpu::CopyToGpu(void* gpu, const void* host, uint64_t byte_size) const {
  const Current current(*this);
  absl::Status status = driver_->StatusOf(driver_->copy_to_gpu(AddressOf(gpu), host, byte_size), "copying to the GPU");
  // From pageable memory the copy returns when the bytes have left it, which is before they have arrived.
  status.Update(driver_->StatusOf(driver_->context_synchronize(), "copying to the GPU"));
  return status;
}

absl::Status Gpu::CopyToHost(void* host, const void* gpu, uint64_t byte_size) const {
  const Current current(*this);
  return driver_->StatusOf(driver_->copy_to_host(host, AddressOf(gpu), byte_size), "copying from the GPU");
}

absl::Status Gpu::Synchronize() const {
  const Current current(*this);
  return driver_->StatusOf(driver_->context_synchronize(), "waiting for the GPU");
}

absl::StatusOr<UniqueFd> GpuAllocation::Export() const {
  if (gpu_ == nullptr || handle_ == 0) {
    return absl::InvalidArgumentError("allocation: expected memory of Gpu::Allocate, got other memory");
  }
  int fd = -1;
  const int result = gpu_->driver_->export_handle(&fd, handle_, cuda::kPosixDescriptor, 0);
  if (absl::Status status = gpu_->driver_->StatusOf(result, "exporting GPU memory"); !status.ok()) return status;
  return UniqueFd(fd);
}

}  // namespace gemmd
