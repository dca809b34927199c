// SPDX-License-Identifier: Apache-2.0
// The tensors that an operator wants there before gemmd is ready, as a file: the JSON form of gemmd.v1.TensorManifest.
// So every one of several daemons has the same tensors by the same names, for whoever may call it.
//
//   {"tensors": [
//     {"name": "layer0.w", "file": {"path": "model.safetensors", "tensor": "layers.0.w"},
//      "transpose": true, "quantize": "BLOCK_128X128"}
//   ]}
//
// name and file are required; shared is implied; data is not taken.
#ifndef GEMMD_SERVER_TENSOR_MANIFEST_H_
#define GEMMD_SERVER_TENSOR_MANIFEST_H_

#include "gemmd/v1/tensors.pb.h"
#include "server/tensor_creation.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstdint>
#include <string>

namespace gemmd {

struct TensorTotals {
  uint64_t tensors = 0;  // Scale factors included.
  uint64_t bytes = 0;
};

// What the text says; whether the files are there shows when they are loaded. Errors: INVALID_ARGUMENT, naming the
// place (syntax) or the field: "tensors[2].name: expected one, got none".
absl::StatusOr<v1::TensorManifest> ParseTensorManifest(absl::string_view text);

// Loads all tensors of a file, one after another; blocks until they are there. Start-up only. Errors: those of
// ParseTensorManifest and of Tensors.Create, with "tensors[i]" before them; INVALID_ARGUMENT if it cannot be read.
absl::StatusOr<TensorTotals> LoadTensorManifest(const std::string& path, const TensorMakers& makers);

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_MANIFEST_H_
