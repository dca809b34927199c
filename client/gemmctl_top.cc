// SPDX-License-Identifier: Apache-2.0
// gemmctl top: what the daemon is doing, again and again.
#include "client/gemmctl_commands.h"
#include "client/request_summary.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;

constexpr char kClearScreen[] = "\x1b[H\x1b[J";

// What one update shows.
struct View {
  v1::ServerInfo info;
  std::vector<OperationSummary> operations;
};

std::string StateName(const v1::WorkerInfo& worker) { return v1::WorkerInfo::State_Name(worker.state()); }

Json ToJson(const View& view) {
  Json json = {{"version", view.info.version()},
               {"draining", view.info.draining()},
               {"sessions", view.info.sessions()},
               {"workers", Json::array()},
               {"operations", Json::array()}};
  for (const v1::WorkerInfo& worker : view.info.workers()) {
    json["workers"].push_back({{"device", worker.device()},
                               {"state", StateName(worker)},
                               {"restarts", worker.restarts()},
                               {"jobs_in_flight", worker.jobs_in_flight()}});
  }
  for (const OperationSummary& operation : view.operations) {
    json["operations"].push_back({{"op", operation.op},
                                  {"requests_per_second", operation.per_second},
                                  {"failed", operation.failed},
                                  {"p50_seconds", static_cast<double>(operation.p50_ns) / 1e9},
                                  {"p99_seconds", static_cast<double>(operation.p99_ns) / 1e9},
                                  {"queue_seconds", operation.queue_ns / 1e9},
                                  {"device_seconds", operation.device_ns / 1e9},
                                  {"batch_jobs", operation.batch_jobs}});
  }
  return json;
}

std::string ToText(const View& view) {
  TextTable workers({"device", "state", "restarts", "jobs"});
  for (const v1::WorkerInfo& worker : view.info.workers()) {
    workers.Add(
        {worker.device(), StateName(worker), absl::StrCat(worker.restarts()), absl::StrCat(worker.jobs_in_flight())});
  }
  TextTable operations({"operation", "per second", "failed", "p50", "p99", "queue", "device", "in batch"});
  for (const OperationSummary& operation : view.operations) {
    operations.Add({operation.op, absl::StrFormat("%.1f", operation.per_second), absl::StrCat(operation.failed),
                    NanosText(static_cast<double>(operation.p50_ns)), NanosText(static_cast<double>(operation.p99_ns)),
                    NanosText(operation.queue_ns), NanosText(operation.device_ns),
                    absl::StrFormat("%.1f", operation.batch_jobs)});
  }
  const absl::Duration age = absl::Now() - absl::FromUnixNanos(view.info.start_time_unix_ns());
  return absl::StrCat("gemmd ", view.info.version(), ", up ", absl::FormatDuration(absl::Trunc(age, absl::Seconds(1))),
                      view.info.draining() ? ", draining" : "", ": ", view.info.sessions(), " sessions, ",
                      view.info.regions(), " regions (", BytesText(view.info.region_bytes()), "), ",
                      view.info.tensors(), " tensors (", BytesText(view.info.tensor_bytes()), ")\n\n",
                      workers.ToString(), "\n", operations.ToString());
}

}  // namespace

absl::Status RunTop(const CommandOptions& options) {
  if (options.interval < absl::Milliseconds(10)) {
    return absl::InvalidArgumentError(
        absl::StrCat("interval: expected at least 10ms, got ", absl::FormatDuration(options.interval)));
  }
  if (options.updates < 0) {
    return absl::InvalidArgumentError(absl::StrCat("updates: expected at least 0, got ", options.updates));
  }
  ConnectOptions connect = options.connect;
  connect.open_session = false;
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, connect);
  if (!client.ok()) return client.status();
  const bool clear = !options.json && isatty(STDOUT_FILENO) != 0;
  const auto interval_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.interval));
  for (int64_t update = 0; options.updates == 0 || update < options.updates; ++update) {
    if (update > 0) absl::SleepFor(options.interval);
    absl::StatusOr<v1::ServerInfo> info = (*client)->GetInfo();
    if (!info.ok()) return info.status();
    const absl::StatusOr<v1::GetTraceResponse> trace = (*client)->GetTrace();
    if (!trace.ok()) return trace.status();
    const uint64_t since_ns = trace->now_ns() - std::min(trace->now_ns(), interval_ns);
    const View view{*std::move(info), Summarize(*trace, since_ns)};
    const std::string text = options.json ? ToJson(view).dump() + "\n" : ToText(view) + "\n";
    if (clear) std::fputs(kClearScreen, stdout);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

}  // namespace gemmd
