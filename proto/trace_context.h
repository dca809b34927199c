// SPDX-License-Identifier: Apache-2.0
// W3C Trace Context: the `traceparent` by which a caller says to which trace a request belongs. The client library
// checks what it sends with it, the front end parses what came. `tracestate` is not looked at: gemmd calls nobody
// further to whom it would have to be handed.
#ifndef GEMMD_PROTO_TRACE_CONTEXT_H_
#define GEMMD_PROTO_TRACE_CONTEXT_H_

#include "absl/strings/string_view.h"

#include <cstdint>
#include <optional>
#include <string>

namespace gemmd {

// The metadata of a call that carries it.
inline constexpr char kTraceparentMetadata[] = "traceparent";

struct TraceId {
  uint64_t high = 0;
  uint64_t low = 0;

  friend bool operator==(const TraceId&, const TraceId&) = default;
};

struct TraceContext {
  TraceId trace_id = {};  // Never zero in a context that was parsed.
  uint64_t span_id = 0;   // The caller's span; 0: the trace begins here.
  bool sampled = false;   // Whether the caller may have recorded it; if not, gemmd does not record it either.

  friend bool operator==(const TraceContext&, const TraceContext&) = default;
};

// "00-<32 hex digits>-<16 hex digits>-<2 hex digits>", lower case, ids not zero. Of a version other than 00 the part
// that this version knows is taken, as the specification demands; version ff is none. None if malformed.
std::optional<TraceContext> ParseTraceparent(absl::string_view text);

// As ParseTraceparent takes it, version 00.
std::string FormatTraceparent(const TraceContext& context);

std::string TraceIdHex(const TraceId& id);  // 32 hex digits.
std::string SpanIdHex(uint64_t span_id);    // 16 hex digits.

}  // namespace gemmd

#endif  // GEMMD_PROTO_TRACE_CONTEXT_H_
