// SPDX-License-Identifier: Apache-2.0
// Whole safetensors files in memory (proto/safetensors.h says what they are). Pure functions; any thread.
#ifndef GEMMD_CLIENT_SAFETENSORS_H_
#define GEMMD_CLIENT_SAFETENSORS_H_

#include "client/stored_array.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <string>
#include <utility>
#include <vector>

namespace gemmd {

// One tensor of a file; `name` may be empty if there is only one.
// Errors: those of ParseSafetensors and FindSafetensors.
absl::StatusOr<StoredArray> ReadSafetensors(absl::string_view file, absl::string_view name);

// A file of these tensors. Requires: names differ; as many bytes as dtype and shape say.
std::string FormatSafetensors(const std::vector<std::pair<std::string, StoredArray>>& tensors);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_SAFETENSORS_H_
