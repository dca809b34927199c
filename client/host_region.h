// SPDX-License-Identifier: Apache-2.0
// Memory shared with gemmd: made, mapped and registered in one call, closed by the destructor. Operands and results in
// it are never copied on the way. Made by Client::CreateHostRegion (sealed memfd; the fast one) and
// Client::CreateSharedMemory (POSIX shared memory, where a name is needed).
#ifndef GEMMD_CLIENT_HOST_REGION_H_
#define GEMMD_CLIENT_HOST_REGION_H_

#include "client/tensor_view.h"
#include "proto/shared_memory.h"

#include "absl/types/span.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace gemmd {

// Move-only. Reading and writing the memory while an operation that names it is in flight is a race, as with any
// buffer. Thread-safe otherwise (all members are const).
class HostRegion {
 public:
  // `close` unregisters the region; it is called once.
  HostRegion(uint64_t id, SharedMapping mapping, std::function<void()> close)
      : id_(id), mapping_(std::move(mapping)), close_(std::move(close)) {}
  HostRegion() = default;
  HostRegion(HostRegion&& other) noexcept
      : id_(std::exchange(other.id_, 0)),
        mapping_(std::move(other.mapping_)),
        close_(std::exchange(other.close_, nullptr)) {}
  HostRegion& operator=(HostRegion&& other) noexcept {
    HostRegion moved(std::move(other));
    std::swap(id_, moved.id_);
    std::swap(mapping_, moved.mapping_);
    std::swap(close_, moved.close_);
    return *this;
  }
  HostRegion(const HostRegion&) = delete;
  HostRegion& operator=(const HostRegion&) = delete;
  // Unregisters and unmaps. Operations in flight finish first on the daemon's side.
  ~HostRegion() {
    if (close_ != nullptr) close_();
  }

  uint64_t id() const { return id_; }
  std::byte* data() const { return mapping_.data(); }
  uint64_t byte_size() const { return mapping_.byte_size(); }

  // `count` elements from `offset` bytes on. Requires: they lie inside, and offset is aligned for T.
  template <typename T>
  absl::Span<T> Elements(uint64_t offset, int64_t count) const {
    return {reinterpret_cast<T*>(data() + offset), static_cast<size_t>(count)};
  }

  // The operand at `offset` bytes.
  TensorView View(uint64_t offset, DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides = {}) const {
    return InRegion(id_, offset, dtype, std::move(shape), std::move(strides));
  }

 private:
  uint64_t id_ = 0;
  SharedMapping mapping_;
  std::function<void()> close_;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_HOST_REGION_H_
