// SPDX-License-Identifier: Apache-2.0
// Memory of one transport for the operands of a problem (client/problem.h): inline bytes, regions of the host, memory
// on a device.
#ifndef GEMMD_CLIENT_OPERAND_MEMORY_H_
#define GEMMD_CLIENT_OPERAND_MEMORY_H_

#include "client/client.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {

// How operands travel. kTensor: B and SFB are resident, the rest inline. kPool: memory of gemmd on its device. kDevice,
// kDeviceIpc: this process's memory on the GPU, with a descriptor and of cudaMalloc.
enum class Transport { kInline, kHost, kSharedMemory, kTensor, kPool, kDevice, kDeviceIpc };
inline constexpr std::array<Transport, 7> kTransports = {
    Transport::kInline, Transport::kHost,   Transport::kSharedMemory, Transport::kTensor,
    Transport::kPool,   Transport::kDevice, Transport::kDeviceIpc};
absl::string_view Name(Transport transport);
// inline, host, shm, tensor, pool, device, device_ipc.
absl::StatusOr<Transport> ParseTransport(absl::string_view name);

// Arrays at 256-byte boundaries of one block of memory: a region, or the process's own. Those on a device have a copy
// in this process's memory, which data() gives: Upload brings it there, Download back.
class Arena {
 public:
  struct Array {
    DType dtype = DType::kNone;
    std::vector<int64_t> shape;
    uint64_t offset = 0;
    uint64_t byte_size = 0;
    bool inline_result = false;  // Comes back with the response and takes no memory here.
  };

  // Plans an array; before Allocate. Gives its index.
  size_t Add(DType dtype, std::vector<int64_t> shape, bool inline_result = false);
  absl::Status Allocate(Client* client, Transport transport);
  absl::Status Upload() const;
  absl::Status Upload(size_t index) const;
  absl::Status Download(size_t index) const;

  std::byte* data(size_t index) const { return base_ + arrays_[index].offset; }
  const Array& array(size_t index) const { return arrays_[index]; }
  TensorView View(size_t index) const;
  // The same, but inline if the arena is on a device.
  TensorView HostView(size_t index) const;
  template <typename T>
  absl::Span<T> Elements(size_t index) const {
    return {reinterpret_cast<T*>(data(index)), static_cast<size_t>(arrays_[index].byte_size) / sizeof(T)};
  }

 private:
  std::vector<Array> arrays_;
  uint64_t byte_size_ = 0;
  absl::Status AllocateOnDevice(Client* client, Transport transport);

  std::vector<std::byte> own_;  // Inline operands, or the copy of what is on a device.
  HostRegion region_;
  GpuAllocation legacy_;  // Of kDeviceIpc; goes after its region.
  DeviceRegion device_;
  bool on_device_ = false;
  std::byte* base_ = nullptr;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_OPERAND_MEMORY_H_
