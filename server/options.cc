// SPDX-License-Identifier: Apache-2.0
#include "server/options.h"

#include "proto/broker.h"
#include "proto/job.h"
#include "server/worker_pool.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include <algorithm>
#include <sys/un.h>

namespace gemmd {
namespace {

// The path and the broker's suffix must fit a socket address with its NUL.
constexpr size_t kMaxUnixPath = sizeof(sockaddr_un::sun_path) - sizeof(kBrokerSuffix);

constexpr int kMaxTraceRequests = 65536;  // Some 10 MB, and as much again in one response of Admin.GetTrace.
constexpr int64_t kMinMessageBytes = 1 << 16;
// Below this, clients would do little but connect.
constexpr absl::Duration kMinConnectionAge = absl::Milliseconds(100);
constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;  // Protobuf ends at 2 GiB.

bool SplitHostPort(absl::string_view text, absl::string_view& host) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  uint32_t port = 0;
  if (!absl::SimpleAtoi(text.substr(colon + 1), &port) || port > 65535) return false;
  host = text.substr(0, colon);
  return true;
}

// "gpu", "gpu:N" or a UUID. NOT_FOUND if there is none of that name.
absl::StatusOr<std::vector<std::string>> ParseGpus(absl::string_view text, const std::vector<std::string>& gpus) {
  uint32_t index = 0;
  if (absl::StartsWith(text, "GPU-")) {
    if (std::find(gpus.begin(), gpus.end(), text) == gpus.end()) return absl::NotFoundError("");
    return std::vector<std::string>{std::string(text)};
  }
  if (text == "gpu") {
    if (gpus.empty()) return absl::NotFoundError("");
    return gpus;
  }
  if (!absl::ConsumePrefix(&text, "gpu:") || !absl::SimpleAtoi(text, &index)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--workers: expected auto, cpu, gpu, gpu:N or GPU-UUID, got \"", text, "\""));
  }
  if (index >= gpus.size()) return absl::NotFoundError("");
  return std::vector<std::string>{gpus[index]};
}

absl::Status NoSuchGpu(absl::string_view text, const DeviceSupport& support) {
  return absl::FailedPreconditionError(absl::StrCat("--workers: expected a Hopper GPU for \"", text, "\", found ",
                                                    support.gpus.size(), support.why_no_gpu.empty() ? "" : ": ",
                                                    support.why_no_gpu));
}

absl::Status CheckTls(const ServerOptions& options) {
  const TlsFiles& tls = options.tls;
  if (tls.empty()) return absl::OkStatus();
  if (tls.certificate.empty() || tls.key.empty()) {
    return absl::InvalidArgumentError("--tls_cert and --tls_key: expected both or none");
  }
  if (options.listen.tcp.empty()) {
    return absl::InvalidArgumentError("--tls_cert: expected a HOST:PORT in --listen to use it on");
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(const ServerOptions& options) {
  if (options.max_message_bytes < kMinMessageBytes || options.max_message_bytes > kMaxMessageBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--max_message_bytes: expected ", kMinMessageBytes, " to ",
                                                   kMaxMessageBytes, ", got ", options.max_message_bytes));
  }
  if (options.arena_bytes < 2 * options.max_message_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("--arena_bytes: expected at least ", 2 * options.max_message_bytes,
                                                   " (a request and a response of --max_message_bytes), got ",
                                                   options.arena_bytes));
  }
  if (options.trace_requests < 0 || options.trace_requests > kMaxTraceRequests) {
    return absl::InvalidArgumentError(
        absl::StrCat("--trace_requests: expected 0 to ", kMaxTraceRequests, ", got ", options.trace_requests));
  }
  if (options.worker_hang_timeout < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--worker_hang_timeout: negative");
  }
  if (options.max_connection_age < kMinConnectionAge) {
    return absl::InvalidArgumentError(absl::StrCat("--max_connection_age: expected at least ",
                                                   absl::FormatDuration(kMinConnectionAge), ", got ",
                                                   absl::FormatDuration(options.max_connection_age)));
  }
  constexpr int kLongestSpinMicros = 1'000'000;
  if (options.spin_us < -1 || options.spin_us > kLongestSpinMicros) {
    return absl::InvalidArgumentError(
        absl::StrCat("--spin_us: expected -1 to ", kLongestSpinMicros, ", got ", options.spin_us));
  }
  if (options.worker_threads < 0) return absl::InvalidArgumentError("--worker_threads: expected at least 0");
  if (options.drain_delay < absl::ZeroDuration()) return absl::InvalidArgumentError("--drain_delay: negative");
  if (options.drain_timeout < absl::ZeroDuration()) return absl::InvalidArgumentError("--drain_timeout: negative");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ListenAddresses> ParseListen(absl::string_view text) {
  ListenAddresses listen;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    part = absl::StripAsciiWhitespace(part);
    absl::string_view host;
    if (absl::ConsumePrefix(&part, "unix:")) {
      if (!listen.unix_path.empty()) return absl::InvalidArgumentError("--listen: expected one unix:PATH, got more");
      if (part.empty() || part[0] != '/') return absl::InvalidArgumentError("--listen: expected an absolute unix:PATH");
      if (part.size() > kMaxUnixPath) {
        return absl::InvalidArgumentError(
            absl::StrCat("--listen: expected a unix:PATH of at most ", kMaxUnixPath, " bytes, got ", part.size()));
      }
      listen.unix_path = std::string(part);
    } else if (SplitHostPort(part, host)) {
      listen.tcp.emplace_back(part);
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--listen: expected unix:PATH or HOST:PORT, got \"", part, "\""));
    }
  }
  if (listen.unix_path.empty()) return absl::InvalidArgumentError("--listen: expected a unix:PATH, got none");
  return listen;
}

absl::StatusOr<std::vector<std::string>> ParseWorkers(absl::string_view text, const DeviceSupport& support) {
  std::vector<std::string> workers;
  if (text == "auto") {
    workers = support.gpus;
    if (workers.empty()) workers.push_back(kCpuDevice);
    return workers;
  }
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    if (part == kCpuDevice) {
      workers.emplace_back(part);
      continue;
    }
    absl::StatusOr<std::vector<std::string>> gpus = ParseGpus(part, support.gpus);
    if (absl::IsNotFound(gpus.status())) return NoSuchGpu(part, support);
    if (!gpus.ok()) return gpus.status();
    workers.insert(workers.end(), gpus->begin(), gpus->end());
  }
  if (workers.size() > kMaxWorkers) {
    return absl::InvalidArgumentError(absl::StrCat("--workers: expected at most ", kMaxWorkers));
  }
  return workers;
}

absl::StatusOr<std::optional<std::vector<uid_t>>> ParseUids(absl::string_view text) {
  if (text.empty()) return std::nullopt;
  std::vector<uid_t> uids;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    uid_t uid = 0;
    // The greatest number is no user: it is what fails to be one.
    if (!absl::SimpleAtoi(part, &uid) || uid == static_cast<uid_t>(-1)) {
      return absl::InvalidArgumentError(absl::StrCat("--allow_uids: expected numeric user ids, got \"", part, "\""));
    }
    uids.push_back(uid);
  }
  return uids;
}

absl::StatusOr<std::vector<std::string>> ParseTensorDirectories(absl::string_view text) {
  std::vector<std::string> directories;
  if (text.empty()) return directories;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    if (!absl::StartsWith(part, "/")) {
      return absl::InvalidArgumentError(absl::StrCat("--tensor_dirs: expected absolute paths, got \"", part, "\""));
    }
    directories.emplace_back(part);
  }
  return directories;
}

bool IsLoopback(absl::string_view host_and_port) {
  absl::string_view host;
  if (!SplitHostPort(host_and_port, host)) return false;
  if (host == "localhost" || host == "[::1]") return true;
  // 127.0.0.0/8 written in full; anything else may be a name that resolves elsewhere.
  const std::vector<absl::string_view> parts = absl::StrSplit(host, '.');
  if (parts.size() != 4 || parts[0] != "127") return false;
  for (absl::string_view part : parts) {
    uint32_t number = 0;
    if (!absl::SimpleAtoi(part, &number) || number > 255) return false;
  }
  return true;
}

absl::Status Validate(const ServerOptions& options) {
  if (options.workers.empty()) return absl::InvalidArgumentError("--workers: expected at least one");
  if (absl::Status status = CheckTls(options); !status.ok()) return status;
  if (!options.token_file.empty() && options.listen.tcp.empty()) {
    return absl::InvalidArgumentError("--token_file: expected a HOST:PORT in --listen to guard");
  }
  if (!options.tensor_manifest.empty() && options.tensor_dirs.empty()) {
    return absl::InvalidArgumentError("--tensor_manifest: expected --tensor_dirs with it, whose files it names");
  }
  for (const std::string& address : options.listen.tcp) {
    if (IsLoopback(address) || !options.tls.empty() || options.insecure) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--listen: ", address, " is reachable from other machines; expected --tls_cert, or --insecure"));
  }
  absl::string_view host;
  if (!options.metrics_listen.empty() && !SplitHostPort(options.metrics_listen, host)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--metrics_listen: expected HOST:PORT, got \"", options.metrics_listen, "\""));
  }
  return CheckSizes(options);
}

}  // namespace gemmd
