// SPDX-License-Identifier: Apache-2.0
// An array as files hold it, and whole-file reading and writing. Used by npy.h, safetensors.h and gemmctl.
#ifndef GEMMD_CLIENT_STORED_ARRAY_H_
#define GEMMD_CLIENT_STORED_ARRAY_H_

#include "proto/element_type.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

// Contiguous, row-major, little-endian.
struct StoredArray {
  DType dtype = DType::kNone;
  std::vector<int64_t> shape;
  std::string bytes;
};

// "e4m3", "bf16", "f32", "i32", "i64", "u8". Errors: INVALID_ARGUMENT.
absl::StatusOr<DType> ParseDType(absl::string_view name);

// Errors: NOT_FOUND, PERMISSION_DENIED and others as the system gives them, with the path.
absl::StatusOr<std::string> ReadFile(const std::string& path);
// Replaces the file at once: a reader sees the old or the new content.
absl::Status WriteFile(const std::string& path, absl::string_view bytes);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_STORED_ARRAY_H_
