// SPDX-License-Identifier: Apache-2.0
// Anonymous shared memory (memfd) and its mapping. Sealed memory cannot shrink under a reader, so a mapping of it never
// raises SIGBUS (see man 2 fcntl, "File sealing").
#ifndef GEMMD_PROTO_SHARED_MEMORY_H_
#define GEMMD_PROTO_SHARED_MEMORY_H_

#include "proto/unique_fd.h"

#include "absl/status/statusor.h"

#include <cstddef>
#include <cstdint>

namespace gemmd {

enum class Access : uint8_t { kReadOnly = 1, kReadWrite = 2 };

// Creates zero-filled memory of `byte_size` bytes, sealed against shrinking, growing and further sealing.
// Errors: RESOURCE_EXHAUSTED, INVALID_ARGUMENT (zero size).
absl::StatusOr<UniqueFd> CreateSealedMemory(uint64_t byte_size);

// Checks that `fd` is a memfd with the seals SHRINK, GROW and SEAL and holds at least `byte_size` bytes.
// Errors: INVALID_ARGUMENT that says which of these failed, with the expected and the found value.
absl::Status CheckSealedMemory(int fd, uint64_t byte_size);

// A shared mapping of the first `byte_size` bytes of a file; unmaps on destruction. Move-only. Does not keep the
// descriptor.
class SharedMapping {
 public:
  static absl::StatusOr<SharedMapping> Map(int fd, uint64_t byte_size, Access access);

  SharedMapping() = default;
  SharedMapping(SharedMapping&& other) noexcept;
  SharedMapping& operator=(SharedMapping&& other) noexcept;
  SharedMapping(const SharedMapping&) = delete;
  SharedMapping& operator=(const SharedMapping&) = delete;
  ~SharedMapping();

  std::byte* data() const { return data_; }
  uint64_t byte_size() const { return byte_size_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t byte_size_ = 0;
};

}  // namespace gemmd

#endif  // GEMMD_PROTO_SHARED_MEMORY_H_
