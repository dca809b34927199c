// SPDX-License-Identifier: Apache-2.0
#include "proto/log.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include <nlohmann/json.hpp>
#include <spdlog/details/os.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <ctime>
#include <utility>

namespace gemmd {
namespace {

// Set while a line about a request is being written: loggers format on the thread that logs, and have no fields.
thread_local const RequestTag* current_request = nullptr;

absl::string_view View(const spdlog::string_view_t& text) { return absl::string_view(text.data(), text.size()); }

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// The second byte of U+0080 to U+009F in UTF-8: controls that some terminals obey.
bool EndsC1Control(absl::string_view text, size_t i) {
  return i > 0 && text[i - 1] == '\xc2' && static_cast<unsigned char>(text[i]) >= 0x80 &&
         static_cast<unsigned char>(text[i]) <= 0x9f;
}

std::string EscapeControls(absl::string_view text) {
  std::string escaped;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\n') {
      escaped += "\\n";
    } else if (IsControl(text[i]) || EndsC1Control(text, i)) {
      absl::StrAppend(&escaped, "\\x", absl::Hex(static_cast<unsigned char>(text[i]), absl::kZeroPad2));
    } else {
      escaped += text[i];
    }
  }
  return escaped;
}

class TextFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    std::string text = EscapeControls(View(message.payload));
    if (current_request != nullptr) {
      absl::StrAppend(&text, " trace_id=", TraceIdHex(current_request->trace_id),
                      " request_id=", current_request->request_id);
    }
    spdlog::details::log_msg escaped = message;
    escaped.payload = text;
    pattern_.format(escaped, line);
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<TextFormatter>(); }

 private:
  spdlog::pattern_formatter pattern_{"[%Y-%m-%d %H:%M:%S.%e] [%n] [%l] %v"};
};

class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    nlohmann::ordered_json json;
    json["time"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::FromChrono(message.time), absl::UTCTimeZone());
    json["level"] = std::string(View(spdlog::level::to_string_view(message.level)));
    json["program"] = std::string(View(message.logger_name));
    json["pid"] = spdlog::details::os::pid();
    json["thread"] = message.thread_id;
    json["message"] = std::string(View(message.payload));
    if (current_request != nullptr) {
      json["trace_id"] = TraceIdHex(current_request->trace_id);
      json["request_id"] = current_request->request_id;
    }
    // Bytes that are no UTF-8 are replaced rather than refused: a line with a hole is worth more than none.
    const std::string text =
        json.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::ordered_json::error_handler_t::replace);
    line.append(text.data(), text.data() + text.size());
    line.push_back('\n');
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

uint64_t MonotonicNow() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void Write(spdlog::level::level_enum level, absl::string_view message) {
  spdlog::default_logger_raw()->log(level, spdlog::string_view_t(message.data(), message.size()));
}

std::string WithCount(absl::string_view message, uint64_t left_out) {
  if (left_out == 0) return std::string(message);
  return absl::StrCat(message, " (", left_out, " more like this were left out)");
}

}  // namespace

absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view text) {
  if (text == "text") return LogFormat::kText;
  if (text == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(absl::StrCat("log_format: expected text or json, got \"", text, "\""));
}

absl::StatusOr<spdlog::level::level_enum> ParseLogLevel(absl::string_view text) {
  const spdlog::level::level_enum level = spdlog::level::from_str(std::string(text));
  // from_str gives "off" for what it does not know.
  if (level != spdlog::level::off || text == "off") return level;
  return absl::InvalidArgumentError(
      absl::StrCat("log_level: expected trace, debug, info, warning, error, critical or off, got \"", text, "\""));
}

std::unique_ptr<spdlog::formatter> MakeLogFormatter(LogFormat format) {
  if (format == LogFormat::kJson) return std::make_unique<JsonFormatter>();
  return std::make_unique<TextFormatter>();
}

void StartLog(const std::string& program, LogFormat format, spdlog::level::level_enum level) {
  // Standard output belongs to whoever reads results: the ready line, a table.
  auto logger = std::make_shared<spdlog::logger>(program, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(MakeLogFormatter(format));
  logger->set_level(level);
  spdlog::set_default_logger(std::move(logger));
  spdlog::set_level(level);
}

void LogRequest(spdlog::level::level_enum level, const RequestTag& request, absl::string_view message) {
  if (!spdlog::should_log(level)) return;
  current_request = &request;
  Write(level, message);
  current_request = nullptr;
}

std::optional<uint64_t> LogLimiter::Admit(uint64_t now_ns) {
  absl::MutexLock lock(&mutex_);
  if (lines_ > 0 && now_ns - window_began_ns_ < kWindowNanos) {
    if (lines_ == kLinesPerWindow) {
      ++left_out_;
      return std::nullopt;
    }
  } else {
    window_began_ns_ = now_ns;
    lines_ = 0;
  }
  ++lines_;
  return std::exchange(left_out_, 0);
}

void LogLimiter::Log(spdlog::level::level_enum level, absl::string_view message) {
  if (!spdlog::should_log(level)) return;
  if (const std::optional<uint64_t> left_out = Admit(MonotonicNow())) Write(level, WithCount(message, *left_out));
}

void LogLimiter::Log(spdlog::level::level_enum level, const RequestTag& request, absl::string_view message) {
  if (!spdlog::should_log(level)) return;
  if (const std::optional<uint64_t> left_out = Admit(MonotonicNow())) {
    LogRequest(level, request, WithCount(message, *left_out));
  }
}

}  // namespace gemmd
