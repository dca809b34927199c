// SPDX-License-Identifier: Apache-2.0
// Headers of safetensors files: 8 bytes of header length, a JSON header (name -> dtype, shape, data_offsets), then the
// elements. Read by gemmctl, and by gemmd for the files of its --tensor_dirs. Types taken: F8_E4M3, BF16, F32, I32,
// I64, U8. Pure functions; any thread.
#ifndef GEMMD_PROTO_SAFETENSORS_H_
#define GEMMD_PROTO_SAFETENSORS_H_

#include "proto/element_type.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

// Bytes before the header, which hold its length.
inline constexpr size_t kSafetensorsLengthBytes = 8;
// The format's own limit, against headers made to exhaust memory.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Where one tensor lies: bytes [begin, end) of the file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kNone;  // kNone: a type that gemmd does not know.
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// "F8_E4M3", ...; empty for kNone.
absl::string_view SafetensorsName(DType dtype);

// Bytes of the header of a file of `file_size` bytes that begins with `start`. Total on any input.
// Errors: INVALID_ARGUMENT (fewer than 8 bytes, a header longer than the file or `limit`).
absl::StatusOr<uint64_t> SafetensorsHeaderBytes(absl::string_view start, uint64_t file_size,
                                                uint64_t limit = kMaxSafetensorsHeader);

// Parses the header of a file of `file_size` bytes, and checks that each entry lies inside it and has the size that its
// type and shape say. Total on any input. Errors: INVALID_ARGUMENT that names the entry.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(absl::string_view header, uint64_t file_size);

// The same for a whole file.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(absl::string_view file);

// The entry `name`, which may be empty if there is only one.
// Errors: NOT_FOUND, INVALID_ARGUMENT (type unknown; which of several).
absl::StatusOr<SafetensorsEntry> FindSafetensors(absl::Span<const SafetensorsEntry> entries, absl::string_view name);

}  // namespace gemmd

#endif  // GEMMD_PROTO_SAFETENSORS_H_
