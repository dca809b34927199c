// SPDX-License-Identifier: Apache-2.0
#include "client/safetensors.h"

#include "proto/safetensors.h"

#include "absl/strings/str_cat.h"
#include <nlohmann/json.hpp>

namespace gemmd {

using Json = nlohmann::json;

absl::StatusOr<StoredArray> ReadSafetensors(absl::string_view file, absl::string_view name) {
  const absl::StatusOr<std::vector<SafetensorsEntry>> entries = ParseSafetensors(file);
  if (!entries.ok()) return entries.status();
  const absl::StatusOr<SafetensorsEntry> entry = FindSafetensors(*entries, name);
  if (!entry.ok()) return entry.status();
  return StoredArray{entry->dtype, entry->shape, std::string(file.substr(entry->begin, entry->end - entry->begin))};
}

std::string FormatSafetensors(const std::vector<std::pair<std::string, StoredArray>>& tensors) {
  Json header = Json::object();
  std::string data;
  for (const auto& [name, array] : tensors) {
    header[name] = {{"dtype", std::string(SafetensorsName(array.dtype))},
                    {"shape", array.shape},
                    {"data_offsets", {data.size(), data.size() + array.bytes.size()}}};
    data.append(array.bytes);
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  // Elements start aligned.
  text.append((kSafetensorsLengthBytes - text.size() % kSafetensorsLengthBytes) % kSafetensorsLengthBytes, ' ');
  std::string file;
  for (size_t i = 0; i < kSafetensorsLengthBytes; ++i) file.push_back(static_cast<char>(text.size() >> (8 * i) & 0xff));
  return absl::StrCat(file, text, data);
}

}  // namespace gemmd
