// SPDX-License-Identifier: Apache-2.0
// gemmctl info, health, warmup, drain, loglevel, trace.
#include "client/chrome_trace.h"
#include "client/gemmctl_commands.h"
#include "client/health.h"
#include "client/problem.h"
#include "client/stored_array.h"
#include "proto/job.h"
#include "proto/warm_up_manifest.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;

// These commands speak for an operator and need no session.
absl::StatusOr<std::unique_ptr<Client>> ConnectWithoutSession(const CommandOptions& options) {
  ConnectOptions connect = options.connect;
  connect.open_session = false;
  return Client::Connect(options.server, connect);
}

Json ToJson(const v1::WorkerInfo& worker) {
  return {{"device", worker.device()},
          {"name", worker.name()},
          {"state", v1::WorkerInfo::State_Name(worker.state())},
          {"restarts", worker.restarts()},
          {"pid", worker.pid()},
          {"cores", worker.cores()},
          {"memory_bytes", worker.memory_bytes()},
          {"jobs_in_flight", worker.jobs_in_flight()},
          {"merging", worker.merging()},
          {"mps", worker.mps()}};
}

// "MxNxK" or "GxMxNxK".
absl::StatusOr<v1::WarmUpShape> ParseShape(const CommandOptions& options, const std::string& text) {
  std::vector<int64_t> extents;
  for (const absl::string_view part : absl::StrSplit(text, 'x')) {
    int64_t extent = 0;
    if (!absl::SimpleAtoi(part, &extent)) extents.clear();
    extents.push_back(extent);
  }
  if (extents.size() != 3 && extents.size() != 4) {
    return absl::InvalidArgumentError(absl::StrCat("shapes: expected MxNxK or GxMxNxK, got \"", text, "\""));
  }
  const absl::StatusOr<Scaling> scaling = ParseScaling(options.scaling.empty() ? "1d2d" : options.scaling);
  if (!scaling.ok()) return scaling.status();
  const absl::StatusOr<DType> d_dtype = ParseDType(options.d_dtype.empty() ? "bf16" : options.d_dtype);
  if (!d_dtype.ok()) return d_dtype.status();
  const bool grouped = extents.size() == 4;
  v1::WarmUpShape shape;
  shape.set_op(grouped ? v1::WarmUpShape::M_GROUPED_CONTIGUOUS : v1::WarmUpShape::DENSE);
  shape.set_scaling(static_cast<v1::Scaling>(*scaling));
  shape.set_d_dtype(ToProto(*d_dtype));
  shape.set_groups(grouped ? extents[0] : 0);
  shape.set_m(extents[grouped ? 1 : 0]);
  shape.set_n(extents[grouped ? 2 : 1]);
  shape.set_k(extents[grouped ? 3 : 2]);
  return shape;
}

absl::StatusOr<v1::WarmUpRequest> WarmUpRequestFrom(const CommandOptions& options) {
  if (options.shapes.empty() == options.manifest.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("warmup: expected --shapes or --manifest, got ", options.shapes.empty() ? "neither" : "both"));
  }
  if (!options.manifest.empty()) return ReadWarmUpManifest(options.manifest);
  v1::WarmUpRequest request;
  for (const std::string& text : options.shapes) {
    const absl::StatusOr<v1::WarmUpShape> shape = ParseShape(options, text);
    if (!shape.ok()) return shape.status();
    *request.add_shapes() = *shape;
  }
  return request;
}

}  // namespace

void Print(const CommandOptions& options, const nlohmann::json& json, const std::string& text) {
  const std::string output = options.json ? json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n" : text;
  std::fwrite(output.data(), 1, output.size(), stdout);
}

absl::Status RunInfo(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectWithoutSession(options);
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::ServerInfo> info = (*client)->GetInfo();
  if (!info.ok()) return info.status();
  const absl::Time started = absl::FromUnixNanos(info->start_time_unix_ns());
  Json json = {{"version", info->version()},
               {"start_time", absl::FormatTime(started, absl::UTCTimeZone())},
               {"draining", info->draining()},
               {"max_message_bytes", info->max_message_bytes()},
               {"broker_path", info->broker_path()},
               {"sessions", info->sessions()},
               {"regions", info->regions()},
               {"region_bytes", info->region_bytes()},
               {"tensors", info->tensors()},
               {"tensor_bytes", info->tensor_bytes()},
               {"workers", Json::array()}};
  TextTable workers({"device", "name", "state", "restarts", "pid", "cores", "memory", "jobs", "MPS"});
  for (const v1::WorkerInfo& worker : info->workers()) {
    json["workers"].push_back(ToJson(worker));
    workers.Add({worker.device(), worker.name(), v1::WorkerInfo::State_Name(worker.state()),
                 absl::StrCat(worker.restarts()), absl::StrCat(worker.pid()), absl::StrCat(worker.cores()),
                 BytesText(worker.memory_bytes()), absl::StrCat(worker.jobs_in_flight()),
                 worker.device() == kCpuDevice ? "-"
                 : worker.mps()                ? "on"
                                               : "off"});
  }
  const std::string text = absl::StrCat(
      "gemmd ", info->version(), ", started ", absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", started, absl::UTCTimeZone()),
      info->draining() ? ", draining" : "", "\n", info->sessions(), " sessions, ", info->regions(), " regions (",
      BytesText(info->region_bytes()), "), ", info->tensors(), " tensors (", BytesText(info->tensor_bytes()),
      "), messages up to ", BytesText(info->max_message_bytes()), "\n\n", workers.ToString());
  Print(options, json, text);
  return absl::OkStatus();
}

absl::Status RunHealth(const CommandOptions& options) {
  const absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = MakeChannel(options.server, options.connect);
  if (!channel.ok()) return channel.status();
  if (options.wait > absl::ZeroDuration()) {
    absl::Status status = WaitUntilServing(*channel, options.service, options.wait);
    if (!status.ok()) return status;
  }
  const absl::StatusOr<std::string> health = CheckHealth(*channel, options.service, options.connect.connect_timeout);
  if (!health.ok()) return health.status();
  Print(options, {{"service", options.service}, {"status", *health}}, absl::StrCat(*health, "\n"));
  if (*health != "SERVING") return absl::UnavailableError(absl::StrCat("health: expected SERVING, got ", *health));
  return absl::OkStatus();
}

absl::Status RunWarmUp(const CommandOptions& options) {
  const absl::StatusOr<v1::WarmUpRequest> request = WarmUpRequestFrom(options);
  if (!request.ok()) return request.status();
  const std::vector<v1::WarmUpShape> shapes(request->shapes().begin(), request->shapes().end());
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectWithoutSession(options);
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::WarmUpResponse> response = (*client)->WarmUp(shapes);
  if (!response.ok()) return response.status();
  Print(options,
        {{"kernels_ready", response->kernels_ready()},
         {"kernels_compiled", response->kernels_compiled()},
         {"seconds", response->seconds()}},
        absl::StrFormat("%d kernels ready, %d of them compiled now, in %.3f s\n", response->kernels_ready(),
                        response->kernels_compiled(), response->seconds()));
  return absl::OkStatus();
}

absl::Status RunDrain(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectWithoutSession(options);
  if (!client.ok()) return client.status();
  absl::Status status = (*client)->Drain();
  if (!status.ok()) return status;
  Print(options, {{"draining", true}}, "draining\n");
  return absl::OkStatus();
}

absl::Status RunLogLevel(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectWithoutSession(options);
  if (!client.ok()) return client.status();
  const std::string& level = options.arguments[0];
  const absl::StatusOr<std::string> previous = (*client)->SetLogLevel(level);
  if (!previous.ok()) return previous.status();
  Print(options, {{"level", level}, {"previous_level", *previous}}, absl::StrCat(*previous, " -> ", level, "\n"));
  return absl::OkStatus();
}

absl::Status RunTrace(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectWithoutSession(options);
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::GetTraceResponse> trace = (*client)->GetTrace();
  if (!trace.ok()) return trace.status();
  const std::string text = ToChromeTrace(*trace).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (options.output.empty()) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return absl::OkStatus();
  }
  std::ofstream file(options.output, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("output: cannot write ", options.output));
  std::fprintf(stderr, "%d requests in %s\n", trace->requests_size(), options.output.c_str());
  return absl::OkStatus();
}

}  // namespace gemmd
