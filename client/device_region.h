// SPDX-License-Identifier: Apache-2.0
// Memory on a device that a client and gemmd share: operands and results in it are never copied on the way. Made by
// Client::CreatePool (gemmd's memory), Client::CreateDeviceRegion (the client's, with a descriptor) and
// Client::ShareDeviceMemory (the client's, of cudaMalloc).
#ifndef GEMMD_CLIENT_DEVICE_REGION_H_
#define GEMMD_CLIENT_DEVICE_REGION_H_

#include "client/gpu.h"
#include "client/tensor_view.h"
#include "proto/job.h"
#include "proto/shared_memory.h"

#include "absl/status/status.h"
#include "absl/types/span.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

// Move-only; closed by the destructor. A call that names it waits for what this process has started on the GPU before
// it (ConnectOptions::synchronize); while it runs, kernels of this process must leave its operands alone. A result is
// there when the call has returned. Thread-safe (all members are const).
class DeviceRegion {
 public:
  // Where the memory is: one of the three.
  struct Memory {
    GpuAllocation allocation;        // This process's own, or imported.
    SharedMapping mapping;           // A pool on the CPU.
    std::shared_ptr<const Gpu> gpu;  // Memory that somebody else owns, at `address`.
    void* address = nullptr;
  };

  DeviceRegion() = default;
  // `close` unregisters the region; it is called once, before the memory goes.
  DeviceRegion(uint64_t id, uint64_t byte_size, Memory memory, std::function<void()> close)
      : id_(id), byte_size_(byte_size), memory_(std::move(memory)), close_(std::move(close)) {}
  // The same region with its memory.
  DeviceRegion(DeviceRegion&& region, Memory memory) noexcept {
    *this = std::move(region);
    memory_ = std::move(memory);
  }
  DeviceRegion(DeviceRegion&& other) noexcept { *this = std::move(other); }
  DeviceRegion& operator=(DeviceRegion&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(byte_size_, other.byte_size_);
    std::swap(memory_, other.memory_);
    std::swap(close_, other.close_);
    return *this;
  }
  DeviceRegion(const DeviceRegion&) = delete;
  DeviceRegion& operator=(const DeviceRegion&) = delete;
  // Unregisters, then frees or unmaps. Operations in flight finish first on the daemon's side.
  ~DeviceRegion() {
    if (close_ != nullptr) close_();
  }

  uint64_t id() const { return id_; }
  uint64_t byte_size() const { return byte_size_; }
  // The GPU; null for a pool on the CPU, whose data() may be read and written directly.
  const Gpu* gpu() const;
  std::string device() const { return gpu() == nullptr ? kCpuDevice : gpu()->uuid(); }
  // An address of the device: for kernels of this process.
  void* data() const;

  // Plain copies of [offset, offset + size) from and to memory of the host, done when they return.
  // Errors: OUT_OF_RANGE, and those of the driver.
  absl::Status Write(uint64_t offset, absl::Span<const std::byte> bytes) const;
  absl::Status Read(uint64_t offset, absl::Span<std::byte> bytes) const;

  // The operand at `offset` bytes.
  TensorView View(uint64_t offset, DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides = {}) const {
    return InRegion(id_, offset, dtype, std::move(shape), std::move(strides));
  }

 private:
  absl::Status CheckRange(uint64_t offset, uint64_t byte_size) const;

  uint64_t id_ = 0;
  uint64_t byte_size_ = 0;
  Memory memory_;
  std::function<void()> close_;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_DEVICE_REGION_H_
