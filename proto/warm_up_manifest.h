// SPDX-License-Identifier: Apache-2.0
// The shapes that an operator wants ready, as a file: the JSON form of gemmd.v1.WarmUpRequest, read by gemmd
// --warmup_manifest and gemmctl warmup --manifest.
//
//   {"shapes": [
//     {"op": "DENSE", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "m": 0, "n": 2112, "k": 7168},
//     {"op": "M_GROUPED_MASKED", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "n": 4096, "k": 7168, "groups": 8}
//   ]}
//
// m and groups may be left out and are 0 then; every other field is required.
#ifndef GEMMD_PROTO_WARM_UP_MANIFEST_H_
#define GEMMD_PROTO_WARM_UP_MANIFEST_H_

#include "gemmd/v1/admin.pb.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <string>

namespace gemmd {

// What the text says; whether a device knows the shapes is for gemmd to say. Errors: INVALID_ARGUMENT, naming the line
// and column (syntax) or the field.
absl::StatusOr<v1::WarmUpRequest> ParseWarmUpManifest(absl::string_view text);

// The same for a file; its path stands before every error. Errors: also INVALID_ARGUMENT if it cannot be read.
absl::StatusOr<v1::WarmUpRequest> ReadWarmUpManifest(const std::string& path);

}  // namespace gemmd

#endif  // GEMMD_PROTO_WARM_UP_MANIFEST_H_
