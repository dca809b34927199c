// SPDX-License-Identifier: Apache-2.0
// Safetensors files: 8 bytes of header length, a JSON header (name -> dtype, shape, data_offsets), then the elements.
// Types taken: F8_E4M3, BF16, F32, I32, I64, U8. Pure functions; any thread.
#ifndef GEMMD_CLIENT_SAFETENSORS_H_
#define GEMMD_CLIENT_SAFETENSORS_H_

#include "client/stored_array.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

// The format's own limit, against headers made to exhaust memory.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Where one tensor lies: [begin, end) of the file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kNone;  // kNone: a type that gemmd does not know.
  std::vector<int64_t> shape;
  size_t begin = 0;
  size_t end = 0;
};

// Parses the header of a whole file and checks that each entry lies inside it and has the size that its type and shape
// say. Total on any input. Errors: INVALID_ARGUMENT that names the entry.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(absl::string_view file);

// One tensor of a file; `name` may be empty if there is only one.
// Errors: those of ParseSafetensors, NOT_FOUND, INVALID_ARGUMENT (type unknown; which of several).
absl::StatusOr<StoredArray> ReadSafetensors(absl::string_view file, absl::string_view name);

// A file of these tensors. Requires: names differ; as many bytes as dtype and shape say.
std::string FormatSafetensors(const std::vector<std::pair<std::string, StoredArray>>& tensors);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_SAFETENSORS_H_
