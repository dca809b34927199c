// SPDX-License-Identifier: Apache-2.0
#include "client/load_mix.h"

#include "client/stored_array.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace gemmd {
namespace {

constexpr uint64_t kMoeSteps = 4;  // Different routings that requests are drawn from.

std::vector<MixEntry> Dense(int64_t m) {
  // The linear layers of DeepSeek-V3 that every token goes through.
  return {{{.m = m, .n = 2112, .k = 7168}, 1},
          {{.m = m, .n = 24576, .k = 1536}, 1},
          {{.m = m, .n = 7168, .k = 2048}, 1},
          {{.m = m, .n = 4096, .k = 7168}, 1}};
}

std::vector<MixEntry> Moe(const MoeOptions& moe, uint64_t seed) {
  std::vector<MixEntry> mix;
  for (uint64_t step = 0; step < kMoeSteps; ++step) {
    ProblemSpec spec{.n = moe.n, .k = moe.k, .groups = moe.groups};
    spec.group_sizes = ZipfGroupSizes(moe, seed + step);
    spec.op = moe.masked ? Op::kMGroupedMasked : Op::kMGroupedContiguous;
    spec.m = moe.masked ? *std::max_element(spec.group_sizes.begin(), spec.group_sizes.end()) : moe.tokens * moe.top_k;
    mix.push_back({spec, 1});
  }
  return mix;
}

}  // namespace

std::vector<int64_t> ZipfGroupSizes(const MoeOptions& moe, uint64_t seed) {
  std::vector<double> popularity;
  for (int64_t group = 0; group < moe.groups; ++group) {
    popularity.push_back(std::pow(static_cast<double>(group + 1), -moe.skew));
  }
  std::mt19937_64 random(seed);
  std::vector<int64_t> sizes(popularity.size(), 0);
  for (int64_t token = 0; token < moe.tokens; ++token) {
    std::vector<double> left = popularity;  // A token goes to different experts.
    for (int64_t choice = 0; choice < std::min(moe.top_k, moe.groups); ++choice) {
      const size_t group = std::discrete_distribution<size_t>(left.begin(), left.end())(random);
      ++sizes[group];
      left[group] = 0;
    }
  }
  return sizes;
}

absl::StatusOr<std::vector<MixEntry>> ParseMix(absl::string_view text) {
  std::vector<MixEntry> mix;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    line = line.substr(0, line.find('#'));
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    MixEntry entry;
    std::vector<int64_t> extents;
    bool good = words.size() >= 5 && words.size() <= 6 && absl::SimpleAtod(words[0], &entry.share) && entry.share > 0;
    for (size_t i = 2; good && i < words.size(); ++i) {
      int64_t extent = 0;
      good = absl::SimpleAtoi(words[i], &extent) && extent > 0;
      extents.push_back(extent);
    }
    if (!good) {
      return absl::InvalidArgumentError(
          absl::StrCat("shapes: line ", line_number, ": expected SHARE OP M N K [GROUPS], all numbers above 0"));
    }
    const absl::StatusOr<Op> op = ParseOp(words[1]);
    if (!op.ok())
      return absl::InvalidArgumentError(absl::StrCat("shapes: line ", line_number, ": ", op.status().message()));
    entry.spec.op = *op;
    entry.spec.m = extents[0];
    entry.spec.n = extents[1];
    entry.spec.k = extents[2];
    entry.spec.groups = extents.size() == 4 ? extents[3] : 0;
    if (*op == Op::kKGrouped) {
      entry.spec.scaling = Scaling::k1D1D;
      entry.spec.d_dtype = DType::kF32;
    }
    mix.push_back(entry);
  }
  if (mix.empty()) return absl::InvalidArgumentError("shapes: expected at least one line, got none");
  return mix;
}

absl::StatusOr<std::vector<MixEntry>> LoadMix(const std::string& shapes, const MoeOptions& moe, uint64_t seed) {
  if (shapes == "tiny") return std::vector<MixEntry>{{{.m = 16, .n = 128, .k = 128}, 1}};
  if (shapes == "deepseek_decode") return Dense(32);
  if (shapes == "deepseek_prefill") return Dense(1024);
  if (shapes == "moe") {
    if (moe.tokens < 1 || moe.top_k < 1 || moe.groups < 1 || moe.n < 1 || moe.k < 1 || moe.skew < 0) {
      return absl::InvalidArgumentError(
          "moe: expected tokens, top_k, groups, n and k of at least 1 and skew of at least 0");
    }
    return Moe(moe, seed);
  }
  const absl::StatusOr<std::string> text = ReadFile(shapes);
  if (!text.ok()) return text.status();
  return ParseMix(*text);
}

}  // namespace gemmd
