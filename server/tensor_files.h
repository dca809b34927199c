// SPDX-License-Identifier: Apache-2.0
// The files that tensors may be made from: what lies below the directories of --tensor_dirs, and nothing else of the
// machine. Paths come from clients and are hostile; what the files hold is not trusted either.
#ifndef GEMMD_SERVER_TENSOR_FILES_H_
#define GEMMD_SERVER_TENSOR_FILES_H_

#include "proto/safetensors.h"
#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

// Longest header that is read: some hundred bytes for each of ten thousands of tensors.
inline constexpr uint64_t kMaxServedHeader = 16 << 20;

// An open .safetensors file. Thread-safe; its functions block on the disk.
class TensorFile {
 public:
  TensorFile() = default;
  TensorFile(UniqueFd fd, uint64_t byte_size) : fd_(std::move(fd)), byte_size_(byte_size) {}

  // The tensor `name`, which may be empty if the file has only one.
  // Errors: NOT_FOUND, INVALID_ARGUMENT (not such a file, or a broken one), naming "file".
  absl::StatusOr<SafetensorsEntry> Find(absl::string_view name) const;

  // Reads bytes [offset, offset + destination.size()). Errors: INVALID_ARGUMENT (the file has become shorter),
  // DATA_LOSS (the disk).
  absl::Status Read(uint64_t offset, absl::Span<std::byte> destination) const;

 private:
  UniqueFd fd_;
  uint64_t byte_size_ = 0;
};

// Immutable.
class TensorFiles {
 public:
  // No directories: every file is refused.
  TensorFiles() = default;

  // Errors: INVALID_ARGUMENT naming --tensor_dirs (not a directory that can be read), FAILED_PRECONDITION (the kernel
  // cannot resolve paths beneath a directory).
  static absl::StatusOr<TensorFiles> Open(absl::Span<const std::string> directories);

  // Opens a regular file by its path below the first of the directories that has it. Links and ".." may not lead out of
  // that directory, and nothing but a regular file is ever opened. May block on the disk.
  // Errors: INVALID_ARGUMENT (empty, absolute, too long), PERMISSION_DENIED (no directories), NOT_FOUND with one text
  // for all that is not such a file, so that nobody learns what lies elsewhere.
  absl::StatusOr<TensorFile> OpenFile(const std::string& path) const;

 private:
  std::vector<UniqueFd> directories_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_FILES_H_
