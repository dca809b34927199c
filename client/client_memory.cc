// SPDX-License-Identifier: Apache-2.0
// Client's memory: regions of every kind.
#include "client/client.h"
#include "client/grpc_status.h"
#include "gemmd/v1/sessions.grpc.pb.h"

#include "absl/strings/str_cat.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace gemmd {

absl::StatusOr<HostRegion> Client::CreateHostRegion(uint64_t byte_size, Access access) {
  const absl::StatusOr<UniqueFd> fd = CreateSealedMemory(byte_size);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd->get(), byte_size, Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  const absl::StatusOr<uint64_t> id = session_->RegisterHost(fd->get(), byte_size, access);
  if (!id.ok()) return id.status();
  return HostRegion(*id, *std::move(mapping), CloserOf(*id));
}

// A failure to close means that the session is gone, and the region with it.
std::function<void()> Client::CloserOf(uint64_t region_id) const {
  return [session = session_, order = order_, region_id] {
    order->Remove(region_id);
    session->CloseRegion(region_id).IgnoreError();
  };
}

void Client::AwaitBeforeCalls(uint64_t region_id, std::shared_ptr<const Gpu> gpu) const {
  if (options_.synchronize) order_->Add(region_id, std::move(gpu));
}

absl::StatusOr<DeviceRegion> Client::CreatePool(uint64_t byte_size, absl::string_view device) {
  absl::StatusOr<CreatedPool> pool = session_->CreatePool(byte_size, device);
  if (!pool.ok()) return pool.status();
  // From here on the region is closed if something fails.
  DeviceRegion unmapped(pool->region_id, byte_size, {}, CloserOf(pool->region_id));
  DeviceRegion::Memory memory;
  if (pool->device == kCpuDevice) {
    absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(pool->fd.get(), byte_size, Access::kReadWrite);
    if (!mapping.ok()) return mapping.status();
    memory.mapping = *std::move(mapping);
  } else {
    const absl::StatusOr<std::shared_ptr<Gpu>> gpu = Gpu::Open(pool->device);
    if (!gpu.ok()) return gpu.status();
    absl::StatusOr<GpuAllocation> allocation = (*gpu)->Import(pool->fd, byte_size);
    if (!allocation.ok()) return allocation.status();
    memory.allocation = *std::move(allocation);
    AwaitBeforeCalls(pool->region_id, *gpu);
  }
  return DeviceRegion(std::move(unmapped), std::move(memory));
}

absl::StatusOr<DeviceRegion> Client::CreateDeviceRegion(const std::shared_ptr<Gpu>& gpu, uint64_t byte_size,
                                                        Access access) {
  absl::StatusOr<GpuAllocation> allocation = gpu->Allocate(byte_size);
  if (!allocation.ok()) return allocation.status();
  const absl::StatusOr<UniqueFd> fd = allocation->Export();
  if (!fd.ok()) return fd.status();
  const absl::StatusOr<uint64_t> id = session_->RegisterDevice(fd->get(), byte_size, access, gpu->uuid());
  if (!id.ok()) return id.status();
  AwaitBeforeCalls(*id, gpu);
  DeviceRegion::Memory memory;
  memory.allocation = *std::move(allocation);
  return DeviceRegion(*id, byte_size, std::move(memory), CloserOf(*id));
}

absl::StatusOr<DeviceRegion> Client::ShareDeviceMemory(const std::shared_ptr<Gpu>& gpu, void* address,
                                                       uint64_t byte_size, Access access) {
  const absl::StatusOr<IpcMemory> ipc = gpu->Describe(address, byte_size);
  if (!ipc.ok()) return ipc.status();
  const absl::StatusOr<uint64_t> id = session_->RegisterDeviceIpc(*ipc, byte_size, access, gpu->uuid());
  if (!id.ok()) return id.status();
  AwaitBeforeCalls(*id, gpu);
  DeviceRegion::Memory memory;
  memory.gpu = gpu;
  memory.address = address;
  return DeviceRegion(*id, byte_size, std::move(memory), CloserOf(*id));
}

absl::StatusOr<HostRegion> Client::CreateSharedMemory(const std::string& name, uint64_t byte_size, Access access) {
  const UniqueFd fd(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("shm_open of ", name));
  auto unlink = [name] { shm_unlink(name.c_str()); };
  if (ftruncate(fd.get(), static_cast<off_t>(byte_size)) != 0) {
    const absl::Status status = absl::ErrnoToStatus(errno, absl::StrCat("ftruncate to ", byte_size, " bytes"));
    unlink();
    return status;
  }
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd.get(), byte_size, Access::kReadWrite);
  if (!mapping.ok()) {
    unlink();
    return mapping.status();
  }
  v1::RegisterSharedMemoryRequest request;
  request.set_name(name);
  request.set_byte_size(byte_size);
  request.set_writable(access == Access::kReadWrite);
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::Region region;
  const std::shared_ptr<v1::Sessions::Stub> sessions = v1::Sessions::NewStub(channel_);
  const grpc::Status status = sessions->RegisterSharedMemory(&context, request, &region);
  if (!status.ok()) {
    unlink();
    return FromGrpc(status);
  }
  auto close = [unlink, sessions, session = session_, id = region.id(), timeout = options_.call_timeout] {
    v1::CloseRegionRequest close_request;
    close_request.set_region_id(id);
    v1::CloseRegionResponse response;
    grpc::ClientContext close_context;
    close_context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    session->Authorize(&close_context);
    sessions->CloseRegion(&close_context, close_request, &response);
    unlink();
  };
  return HostRegion(region.id(), *std::move(mapping), std::move(close));
}

}  // namespace gemmd
