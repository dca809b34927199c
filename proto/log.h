// SPDX-License-Identifier: Apache-2.0
// The log of the daemon and of its workers, which write to one standard error: the same two formats, the same levels,
// one line for each message whatever it holds. Messages go through spdlog; this is how they are set up and written.
#ifndef GEMMD_PROTO_LOG_H_
#define GEMMD_PROTO_LOG_H_

#include "proto/trace_context.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include <spdlog/common.h>
#include <spdlog/formatter.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace gemmd {

enum class LogFormat : uint8_t { kText, kJson };

// Errors: INVALID_ARGUMENT.
absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view text);
// trace, debug, info, warning, error, critical or off. Errors: INVALID_ARGUMENT.
absl::StatusOr<spdlog::level::level_enum> ParseLogLevel(absl::string_view text);

// kText: "[2026-01-31 12:00:00.123] [gemmd] [info] message trace_id=... request_id=...".
// kJson: one object in a line: time (RFC 3339, UTC), level, program, pid, thread, message, and of a request trace_id
// and request_id. Control characters of a message are escaped in both, so that nobody can write lines of his own.
std::unique_ptr<spdlog::formatter> MakeLogFormatter(LogFormat format);

// Makes the default logger: standard error, with the name of this program. First thing in main.
void StartLog(const std::string& program, LogFormat format, spdlog::level::level_enum level);

// Which request a line is about.
struct RequestTag {
  TraceId trace_id;
  uint64_t request_id = 0;  // The client's own; 0 if it gave none.
};

// Writes a line about a request, if the level is logged.
void LogRequest(spdlog::level::level_enum level, const RequestTag& request, absl::string_view message);

// Keeps one call site from flooding the log. Thread-safe; one object for each call site.
class LogLimiter {
 public:
  // So many lines at once are a story; more in the same window repeat it.
  static constexpr int kLinesPerWindow = 5;
  static constexpr uint64_t kWindowNanos = 10'000'000'000;

  // None if the line is to be left out, else how many were left out since the last one. `now_ns`: CLOCK_MONOTONIC.
  std::optional<uint64_t> Admit(uint64_t now_ns);

  // Writes the line, with the number of those left out before it, or leaves it out.
  void Log(spdlog::level::level_enum level, absl::string_view message);
  void Log(spdlog::level::level_enum level, const RequestTag& request, absl::string_view message);

 private:
  absl::Mutex mutex_;
  uint64_t window_began_ns_ ABSL_GUARDED_BY(mutex_) = 0;
  int lines_ ABSL_GUARDED_BY(mutex_) = 0;  // Of this window.
  uint64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace gemmd

#endif  // GEMMD_PROTO_LOG_H_
