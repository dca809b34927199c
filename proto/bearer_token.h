// SPDX-License-Identifier: Apache-2.0
// Bearer tokens of gRPC calls on HOST:PORT, and the files that both sides keep them in.
#ifndef GEMMD_PROTO_BEARER_TOKEN_H_
#define GEMMD_PROTO_BEARER_TOKEN_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstddef>
#include <string>
#include <vector>

namespace gemmd {

// Metadata of a call: "authorization: Bearer TOKEN".
inline constexpr char kAuthorizationMetadata[] = "authorization";
inline constexpr char kBearerPrefix[] = "Bearer ";

// So that a token and the session's metadata fit into the metadata of a call several times.
inline constexpr size_t kMaxTokenBytes = 1024;

// The tokens of a file: one on each line, without spaces around it; empty lines and lines that begin with # are none.
// May be empty. Errors: INVALID_ARGUMENT with the number of the line, never with what it says.
absl::StatusOr<std::vector<std::string>> ParseTokens(absl::string_view text);

}  // namespace gemmd

#endif  // GEMMD_PROTO_BEARER_TOKEN_H_
