// SPDX-License-Identifier: Apache-2.0
#include "proto/safetensors.h"

#include "absl/strings/str_cat.h"
#include <nlohmann/json.hpp>

#include <algorithm>
#include <utility>

namespace gemmd {
namespace {

using Json = nlohmann::json;

constexpr int kMaxJsonDepth = 4;  // Header, entry, shape; one to spare for metadata.

struct NamedType {
  absl::string_view name;
  DType dtype;
};
constexpr NamedType kTypes[] = {{"F8_E4M3", DType::kE4m3}, {"BF16", DType::kBf16}, {"F32", DType::kF32},
                                {"I32", DType::kI32},      {"I64", DType::kI64},   {"U8", DType::kU8}};

absl::Status Bad(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("safetensors: ", what)); }

// True if every element is an integer from 0 to 2^62.
bool AreExtents(const Json& array) {
  if (!array.is_array()) return false;
  for (const Json& element : array) {
    if (!element.is_number_unsigned() || element.get<uint64_t>() > uint64_t{1} << 62) return false;
  }
  return true;
}

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const Json& value, uint64_t data_begin,
                                            uint64_t file_size) {
  const auto bad = [&](absl::string_view what) { return Bad(absl::StrCat("entry \"", name, "\": ", what)); };
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets")) {
    return bad("expected dtype, shape and data_offsets");
  }
  const Json& dtype = value["dtype"];
  const Json& shape = value["shape"];
  const Json& offsets = value["data_offsets"];
  if (!dtype.is_string()) return bad("dtype: expected a string");
  if (!AreExtents(shape)) return bad("shape: expected numbers of at least 0");
  if (!AreExtents(offsets) || offsets.size() != 2) return bad("data_offsets: expected two numbers of at least 0");
  SafetensorsEntry entry;
  entry.name = name;
  entry.shape = shape.get<std::vector<int64_t>>();
  for (const NamedType& type : kTypes) {
    if (dtype.get_ref<const std::string&>() == type.name) entry.dtype = type.dtype;
  }
  const auto begin = offsets[0].get<uint64_t>();
  const auto end = offsets[1].get<uint64_t>();
  if (begin > end || end > file_size - data_begin) {
    return bad(
        absl::StrCat("data_offsets: expected a range in ", file_size - data_begin, " bytes, got ", begin, " to ", end));
  }
  entry.begin = data_begin + begin;
  entry.end = data_begin + end;
  if (entry.dtype == DType::kNone) return entry;
  const absl::StatusOr<int64_t> byte_size = ByteSizeOf(entry.dtype, entry.shape);
  if (!byte_size.ok()) return bad(byte_size.status().message());
  if (static_cast<uint64_t>(*byte_size) != end - begin) {
    return bad(absl::StrCat("data_offsets: expected ", *byte_size, " bytes for its shape, got ", end - begin));
  }
  return entry;
}

// The parsed header; a discarded value if it is no JSON or nested too deeply.
Json ParseHeader(absl::string_view text) {
  bool too_deep = false;
  const Json::parser_callback_t guard = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > kMaxJsonDepth;
    return !too_deep;
  };
  Json header = Json::parse(text.begin(), text.end(), guard, /*allow_exceptions=*/false);
  return too_deep ? Json(Json::value_t::discarded) : header;
}

}  // namespace

absl::string_view SafetensorsName(DType dtype) {
  for (const NamedType& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  return "";
}

absl::StatusOr<uint64_t> SafetensorsHeaderBytes(absl::string_view start, uint64_t file_size, uint64_t limit) {
  if (start.size() < kSafetensorsLengthBytes || file_size < kSafetensorsLengthBytes) {
    return Bad("expected 8 bytes of header length, got the end of the file");
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kSafetensorsLengthBytes; ++i) {
    length |= uint64_t{static_cast<unsigned char>(start[i])} << (8 * i);
  }
  const uint64_t most = std::min(limit, file_size - kSafetensorsLengthBytes);
  if (length > most) return Bad(absl::StrCat("header: expected at most ", most, " bytes, got ", length));
  return length;
}

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(absl::string_view header, uint64_t file_size) {
  const uint64_t data_begin = kSafetensorsLengthBytes + header.size();
  if (file_size < data_begin) return Bad(absl::StrCat("expected ", data_begin, " bytes of header, got ", file_size));
  const Json parsed = ParseHeader(header);
  if (!parsed.is_object()) return Bad("header: expected a JSON object");
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : parsed.items()) {
    if (name == "__metadata__") continue;
    absl::StatusOr<SafetensorsEntry> entry = ParseEntry(name, value, data_begin, file_size);
    if (!entry.ok()) return entry.status();
    entries.push_back(*std::move(entry));
  }
  return entries;
}

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(absl::string_view file) {
  const absl::StatusOr<uint64_t> length = SafetensorsHeaderBytes(file, file.size());
  if (!length.ok()) return length.status();
  return ParseSafetensorsHeader(file.substr(kSafetensorsLengthBytes, *length), file.size());
}

absl::StatusOr<SafetensorsEntry> FindSafetensors(absl::Span<const SafetensorsEntry> entries, absl::string_view name) {
  if (name.empty() && entries.size() != 1) {
    return Bad(absl::StrCat("expected the name of one of its ", entries.size(), " tensors"));
  }
  for (const SafetensorsEntry& entry : entries) {
    if (!name.empty() && name != entry.name) continue;
    if (entry.dtype == DType::kNone) {
      return Bad(absl::StrCat("entry \"", entry.name, "\": expected F8_E4M3, BF16, F32, I32, I64 or U8"));
    }
    return entry;
  }
  return absl::NotFoundError(absl::StrCat("safetensors: no tensor \"", name, "\""));
}

}  // namespace gemmd
