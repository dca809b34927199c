// SPDX-License-Identifier: Apache-2.0
#include "client/operand_memory.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

constexpr uint64_t kArenaAlignment = 256;

// A name that no other process or region uses.
std::string UniqueName() {
  static std::atomic<uint64_t> next{0};
  return absl::StrCat("/gemmd-", getpid(), "-", next.fetch_add(1));
}

// The first GPU that the daemon serves.
absl::StatusOr<std::shared_ptr<Gpu>> OpenServedGpu(Client* client) {
  const absl::StatusOr<v1::ServerInfo> info = client->GetInfo();
  if (!info.ok()) return info.status();
  for (const v1::WorkerInfo& worker : info->workers()) {
    if (absl::StartsWith(worker.device(), "GPU-")) return Gpu::Open(worker.device());
  }
  return absl::FailedPreconditionError(
      "transport: the daemon serves no GPU; expected inline, host, shm, tensor or pool");
}

}  // namespace

absl::string_view Name(Transport transport) {
  switch (transport) {
    case Transport::kInline:
      return "inline";
    case Transport::kHost:
      return "host";
    case Transport::kSharedMemory:
      return "shm";
    case Transport::kTensor:
      return "tensor";
    case Transport::kPool:
      return "pool";
    case Transport::kDevice:
      return "device";
    case Transport::kDeviceIpc:
      return "device_ipc";
  }
  return "invalid";
}

absl::StatusOr<Transport> ParseTransport(absl::string_view name) {
  for (const Transport transport : kTransports) {
    if (name == Name(transport)) return transport;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("transport: expected inline, host, shm, tensor, pool, device or device_ipc, got \"", name, "\""));
}

size_t Arena::Add(DType dtype, std::vector<int64_t> shape, bool inline_result) {
  Array array{dtype, std::move(shape), byte_size_, 0, inline_result};
  array.byte_size = static_cast<uint64_t>(ElementCount(array.shape) * ByteSize(dtype));
  if (!inline_result) byte_size_ += (array.byte_size + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  arrays_.push_back(std::move(array));
  return arrays_.size() - 1;
}

absl::Status Arena::Allocate(Client* client, Transport transport) {
  byte_size_ = std::max(byte_size_, kArenaAlignment);  // An operation of nothing still has memory.
  if (transport == Transport::kInline || transport == Transport::kTensor) {
    own_.resize(byte_size_);
    base_ = own_.data();
    return absl::OkStatus();
  }
  if (transport != Transport::kHost && transport != Transport::kSharedMemory) {
    own_.resize(byte_size_);
    base_ = own_.data();
    return AllocateOnDevice(client, transport);
  }
  absl::StatusOr<HostRegion> region = transport == Transport::kHost
                                          ? client->CreateHostRegion(byte_size_)
                                          : client->CreateSharedMemory(UniqueName(), byte_size_);
  if (!region.ok()) return region.status();
  region_ = *std::move(region);
  base_ = region_.data();
  return absl::OkStatus();
}

absl::Status Arena::AllocateOnDevice(Client* client, Transport transport) {
  absl::StatusOr<DeviceRegion> region;
  if (transport == Transport::kPool) {
    region = client->CreatePool(byte_size_);
  } else {
    const absl::StatusOr<std::shared_ptr<Gpu>> gpu = OpenServedGpu(client);
    if (!gpu.ok()) return gpu.status();
    if (transport == Transport::kDevice) {
      region = client->CreateDeviceRegion(*gpu, byte_size_);
    } else {
      absl::StatusOr<GpuAllocation> legacy = (*gpu)->AllocateLegacy(std::max(byte_size_, kGpuGranule));
      if (!legacy.ok()) return legacy.status();
      legacy_ = *std::move(legacy);
      region = client->ShareDeviceMemory(*gpu, legacy_.data(), byte_size_);
    }
  }
  if (!region.ok()) return region.status();
  device_ = *std::move(region);
  on_device_ = true;
  return absl::OkStatus();
}

absl::Status Arena::Upload() const {
  return on_device_ ? device_.Write(0, absl::MakeConstSpan(base_, byte_size_)) : absl::OkStatus();
}

absl::Status Arena::Upload(size_t index) const {
  const Array& array = arrays_[index];
  return on_device_ ? device_.Write(array.offset, absl::MakeConstSpan(data(index), array.byte_size)) : absl::OkStatus();
}

absl::Status Arena::Download(size_t index) const {
  const Array& array = arrays_[index];
  return on_device_ ? device_.Read(array.offset, absl::MakeSpan(data(index), array.byte_size)) : absl::OkStatus();
}

TensorView Arena::HostView(size_t index) const {
  const Array& array = arrays_[index];
  return on_device_ ? Inline<std::byte>(Elements<std::byte>(index), array.dtype, array.shape) : View(index);
}

TensorView Arena::View(size_t index) const {
  const Array& array = arrays_[index];
  if (array.inline_result) return InlineResult(array.dtype, array.shape);
  if (on_device_) return device_.View(array.offset, array.dtype, array.shape);
  if (!own_.empty()) return Inline<std::byte>(Elements<std::byte>(index), array.dtype, array.shape);
  return region_.View(array.offset, array.dtype, array.shape);
}

}  // namespace gemmd
