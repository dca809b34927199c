// SPDX-License-Identifier: Apache-2.0
#include "proto/trace_context.h"

#include "absl/strings/str_cat.h"

#include <cstddef>

namespace gemmd {
namespace {

// Where the fields of version 00 begin, and where its text ends.
constexpr size_t kTraceIdAt = 3, kSpanIdAt = 36, kFlagsAt = 53, kLength = 55;
constexpr uint64_t kSampledFlag = 1;

// Lower case only. None if any of the digits is not one.
std::optional<uint64_t> ParseHex(absl::string_view digits) {
  uint64_t value = 0;
  for (const char c : digits) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'a' || c > 'f')) return std::nullopt;
    value = value << 4 | static_cast<uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  return value;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(absl::string_view text) {
  if (text.size() < kLength) return std::nullopt;
  if (text[kTraceIdAt - 1] != '-' || text[kSpanIdAt - 1] != '-' || text[kFlagsAt - 1] != '-') return std::nullopt;
  const std::optional<uint64_t> version = ParseHex(text.substr(0, 2));
  if (!version || *version == 0xff) return std::nullopt;
  // A later version may go on after the flags, behind another dash.
  if (text.size() > kLength && (*version == 0 || text[kLength] != '-')) return std::nullopt;
  const std::optional<uint64_t> high = ParseHex(text.substr(kTraceIdAt, 16));
  const std::optional<uint64_t> low = ParseHex(text.substr(kTraceIdAt + 16, 16));
  const std::optional<uint64_t> span_id = ParseHex(text.substr(kSpanIdAt, 16));
  const std::optional<uint64_t> flags = ParseHex(text.substr(kFlagsAt, 2));
  if (!high || !low || !span_id || !flags) return std::nullopt;
  if ((*high == 0 && *low == 0) || *span_id == 0) return std::nullopt;
  return TraceContext{{*high, *low}, *span_id, (*flags & kSampledFlag) != 0};
}

std::string FormatTraceparent(const TraceContext& context) {
  return absl::StrCat("00-", TraceIdHex(context.trace_id), "-", SpanIdHex(context.span_id),
                      context.sampled ? "-01" : "-00");
}

std::string TraceIdHex(const TraceId& id) {
  return absl::StrCat(absl::Hex(id.high, absl::kZeroPad16), absl::Hex(id.low, absl::kZeroPad16));
}

std::string SpanIdHex(uint64_t span_id) { return absl::StrCat(absl::Hex(span_id, absl::kZeroPad16)); }

}  // namespace gemmd
