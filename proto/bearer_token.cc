// SPDX-License-Identifier: Apache-2.0
#include "proto/bearer_token.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include <algorithm>

namespace gemmd {

absl::StatusOr<std::vector<std::string>> ParseTokens(absl::string_view text) {
  std::vector<std::string> tokens;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    const auto visible = [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); };
    if (!std::all_of(line.begin(), line.end(), visible)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": expected one token of visible ASCII characters"));
    }
    if (line.size() > kMaxTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": expected a token of at most ", kMaxTokenBytes,
                                                     " characters, got ", line.size()));
    }
    tokens.emplace_back(line);
  }
  return tokens;
}

}  // namespace gemmd
