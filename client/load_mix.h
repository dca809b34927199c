// SPDX-License-Identifier: Apache-2.0
// What gemmload sends: shapes with their shares. Pure functions.
#ifndef GEMMD_CLIENT_LOAD_MIX_H_
#define GEMMD_CLIENT_LOAD_MIX_H_

#include "client/problem.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

struct MixEntry {
  ProblemSpec spec;
  double share = 1;  // Relative to the other entries.
};

// The `moe` preset: each step routes tokens to top_k of `groups` experts, the popularity of expert i being
// 1 / (i + 1)^skew (Zipf).
struct MoeOptions {
  int64_t tokens = 32;
  int64_t top_k = 8;
  int64_t groups = 32;
  double skew = 1.0;
  bool masked = false;  // m-grouped masked instead of contiguous.
  int64_t n = 512;      // Of an expert: small enough for a CPU.
  int64_t k = 1024;
};

// Presets: tiny, deepseek_decode, deepseek_prefill, moe. Anything else is a file: lines of
// "SHARE OP M N K [GROUPS]", '#' starts a comment. Errors: INVALID_ARGUMENT with the line; those of reading.
absl::StatusOr<std::vector<MixEntry>> LoadMix(const std::string& shapes, const MoeOptions& moe, uint64_t seed);

// Rows of each group for one step.
std::vector<int64_t> ZipfGroupSizes(const MoeOptions& moe, uint64_t seed);

absl::StatusOr<std::vector<MixEntry>> ParseMix(absl::string_view text);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_LOAD_MIX_H_
