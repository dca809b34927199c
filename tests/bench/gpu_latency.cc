// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/gpu_latency.h"

#include "client/client.h"
#include "client/problem.h"
#include "gemmd/v1/gemm.grpc.pb.h"
#include "proto/job_ring.h"
#include "tests/e2e/process.h"

#include "absl/algorithm/container.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

ABSL_FLAG(int64_t, m, 4096, "latency: rows of A.");
ABSL_FLAG(int64_t, n, 4096, "latency: rows of B.");
ABSL_FLAG(int64_t, k, 7168, "latency: columns of A and B.");
ABSL_FLAG(std::vector<std::string>, transports, std::vector<std::string>({"pool", "device", "device_ipc", "host"}),
          "latency: where A, SFA and D are.");
ABSL_FLAG(
    std::vector<std::string>, paths, std::vector<std::string>({"unary", "stream"}),
    "latency: how the calls are made. A stream starts threads in this process that then read the network for unary "
    "calls and round trips too: for a program that has none, measure them apart.");
ABSL_FLAG(int, spin_us, -1, "latency: ConnectOptions::spin of the client; -1: not set.");
ABSL_FLAG(int, rounds, 15, "latency: interleaved rounds.");
ABSL_FLAG(int, calls, 100, "latency: calls of each transport and path, and round trips beside them, in a round.");
ABSL_FLAG(bool, kernel, true, "latency: time the kernel alone too; without it there is no overhead.");
ABSL_FLAG(bool, check, true, "latency: compare the last result of each transport and path with the reference.");

namespace gemmd {
namespace {

constexpr int kWarmUpCalls = 50;

// One product, there and back.
using Call = std::function<v1::RunResponse()>;

Call UnaryCall(Client& client, const v1::RunRequest& request) {
  return [&client, &request] { return ValueOrDie(client.Run(request), "Run"); };
}

Call StreamCall(RunStream& stream, const v1::RunRequest& request) {
  return [&stream, &request] {
    absl::StatusOr<v1::RunResponse> response;
    absl::Notification done;
    const absl::Status sent = stream.Submit(request, [&](absl::StatusOr<v1::RunResponse> answer) {
      response = std::move(answer);
      done.Notify();
    });
    OkOrDie(sent, "Submit");
    done.WaitForNotification();
    return ValueOrDie(std::move(response), "Stream");
  };
}

// A bare gRPC server: a program of this folder that takes a socket and more arguments.
class BareServer {
 public:
  BareServer(const std::string& program, const std::vector<std::string>& arguments) {
    const std::string socket = directory_.path() + "/bare.sock";
    std::vector<std::string> command = {absl::StrCat(testing::BinaryDirectory(), "/", program), socket};
    command.insert(command.end(), arguments.begin(), arguments.end());
    server_ = ValueOrDie(testing::ChildProcess::Start(command), program.c_str());
    ValueOrDie(server_->ReadLine(absl::Seconds(60)), program.c_str());
    stub_ = v1::Gemm::NewStub(grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()));
  }

  v1::RunResponse RoundTrip(const v1::RunRequest& request) const {
    grpc::ClientContext context;
    v1::RunResponse response;
    const grpc::Status status = stub_->Run(&context, request, &response);
    if (!status.ok()) OkOrDie(absl::UnavailableError(status.error_message()), "bare server");
    return response;
  }

 private:
  const testing::TemporaryDirectory directory_;
  std::unique_ptr<testing::ChildProcess> server_;
  std::unique_ptr<v1::Gemm::Stub> stub_;
};

// The kernel alone, in a process of its own.
class KernelAlone {
 public:
  KernelAlone(const ProblemSpec& spec, const std::string& response_bytes)
      : server_("gemmd-kernel-server",
                {absl::StrCat(spec.m), absl::StrCat(spec.n), absl::StrCat(spec.k), response_bytes}) {
    on_gpu_.set_request_id(1);
  }

  void MeasureRound(const v1::RunRequest& request, int calls) {
    for (int i = 0; i < calls; ++i) gpu_us_.push_back(DeviceMicroseconds(server_.RoundTrip(on_gpu_)));
    v1::RunRequest waited = request;
    waited.set_request_id(0);
    for (int i = 0; i < calls; ++i) {
      v1::RunResponse response;
      call_us_.push_back(MicrosecondsOf([&] { response = server_.RoundTrip(waited); }));
      waited_us_.push_back(DeviceMicroseconds(response));
    }
  }

  double gpu_us() const { return Median(gpu_us_); }

  // `waited`: from before its launch until its process knows that it is done; `call`: a call of the bare server.
  Json Report() const {
    return Json{
        {"gpu_p50_us", Median(gpu_us_)}, {"waited_p50_us", Median(waited_us_)}, {"call_p50_us", Median(call_us_)}};
  }

 private:
  static double DeviceMicroseconds(const v1::RunResponse& response) {
    return static_cast<double>(response.times().device_ns()) / 1e3;
  }

  const BareServer server_;
  v1::RunRequest on_gpu_;
  std::vector<double> gpu_us_;
  std::vector<double> waited_us_;
  std::vector<double> call_us_;
};

// One kind of memory by one path, and what was measured of it.
struct Series {
  std::string transport;
  std::string path;
  const v1::RunRequest& request;
  Problem* problem = nullptr;
  Call call;
  v1::RunResponse last = {};
  std::vector<double> call_us = {};
  std::vector<double> echo_us = {};
  Stages stages = {};
};

// When a call began and when its answer was here.
using Times = std::pair<uint64_t, uint64_t>;

// Before the front end's decoding and after its reply: gRPC on both sides, and the socket. The daemon has no other
// client, so its latest requests are these calls.
void AddWays(const v1::GetTraceResponse& trace, const std::vector<Times>& calls, Stages& stages) {
  const auto count = static_cast<int>(calls.size());
  if (trace.requests_size() < count) OkOrDie(absl::InternalError("fewer requests than calls"), "trace");
  for (int i = 0; i < count; ++i) {
    const v1::RequestTrace& request = trace.requests(trace.requests_size() - count + i);
    const auto [begin_ns, end_ns] = calls[static_cast<size_t>(i)];
    stages["there"].push_back(static_cast<double>(request.received_ns() - begin_ns) / 1e3);
    stages["back"].push_back(static_cast<double>(end_ns - request.answered_ns()) / 1e3);
  }
}

void MeasureRound(Client& client, Series& series, const BareServer& echo, int calls) {
  for (int i = 0; i < calls; ++i) series.echo_us.push_back(MicrosecondsOf([&] { echo.RoundTrip(series.request); }));
  std::vector<Times> times;
  for (int i = 0; i < calls; ++i) {
    const uint64_t begin_ns = MonotonicNanos();
    series.last = series.call();
    times.emplace_back(begin_ns, MonotonicNanos());
    series.call_us.push_back(static_cast<double>(times.back().second - begin_ns) / 1e3);
    AddStages(series.last.times(), series.stages);
  }
  AddWays(ValueOrDie(client.GetTrace(), "GetTrace"), times, series.stages);
}

Json Report(Series& series, const KernelAlone* kernel, bool check) {
  const double call = Median(series.call_us);
  const double echo = Median(series.echo_us);
  Json report{{"transport", series.transport},
              {"path", series.path},
              {"call_p50_us", call},
              {"call_p99_us", Quantile(series.call_us, 0.99)},
              {"stages_p50_us", Medians(series.stages)},
              {"echo_p50_us", echo}};
  if (kernel != nullptr) {
    report["overhead_us"] = call - kernel->gpu_us();
    report["overhead_ratio"] = (call - kernel->gpu_us()) / echo;
  }
  if (check) {
    const auto error = series.problem->Check(series.last);
    report["check"] = error.ok() ? "ok" : error.status().ToString();
  }
  return report;
}

void WarmUp(Client& client, const ProblemSpec& spec) {
  v1::WarmUpShape shape;
  shape.set_op(v1::WarmUpShape::DENSE);
  shape.set_scaling(v1::SCALING_1D2D);
  shape.set_m(spec.m);
  shape.set_n(spec.n);
  shape.set_k(spec.k);
  shape.set_d_dtype(v1::BF16);
  ValueOrDie(client.WarmUp({&shape, 1}), "WarmUp");
}

}  // namespace

Json MeasureGpuLatency(const std::string& address) {
  ConnectOptions connect;
  if (const int spin_us = absl::GetFlag(FLAGS_spin_us); spin_us >= 0) connect.spin = absl::Microseconds(spin_us);
  const auto client = ValueOrDie(Client::Connect(address, connect), "connect");
  const ProblemSpec spec{
      .op = Op::kDense, .m = absl::GetFlag(FLAGS_m), .n = absl::GetFlag(FLAGS_n), .k = absl::GetFlag(FLAGS_k)};
  const int rounds = absl::GetFlag(FLAGS_rounds);
  const int calls = absl::GetFlag(FLAGS_calls);
  WarmUp(*client, spec);
  const auto weights = ValueOrDie(Weights::Create(client.get(), spec, Transport::kTensor, 1), "weights");
  for (const std::string& path : absl::GetFlag(FLAGS_paths)) {
    if (path == "unary" || path == "stream") continue;
    OkOrDie(absl::InvalidArgumentError(absl::StrCat("expected unary or stream, got ", path)), "--paths");
  }
  const bool streams = absl::c_linear_search(absl::GetFlag(FLAGS_paths), "stream");
  const std::unique_ptr<RunStream> stream = streams ? client->OpenStream() : nullptr;
  // A problem of its own for each path, so that each has its own result.
  std::vector<std::unique_ptr<Problem>> problems;
  std::vector<Series> all;
  for (const std::string& name : absl::GetFlag(FLAGS_transports)) {
    const Transport transport = ValueOrDie(ParseTransport(name), "transports");
    for (const std::string& path : absl::GetFlag(FLAGS_paths)) {
      problems.push_back(
          ValueOrDie(Problem::Create(client.get(), spec, transport, weights, problems.size() + 2), "operands"));
      const v1::RunRequest& request = problems.back()->request();
      all.push_back({.transport = name,
                     .path = path,
                     .request = request,
                     .problem = problems.back().get(),
                     .call = path == "unary" ? UnaryCall(*client, request) : StreamCall(*stream, request)});
    }
  }
  // Of the servers beside gemmd: as many bytes as its own. The tag and the length of the only field take two.
  const std::string payload = absl::StrCat(std::max<size_t>(all.front().call().ByteSizeLong(), 2) - 2);
  const BareServer echo("gemmd-echo-server", {payload});
  std::optional<KernelAlone> kernel;
  if (absl::GetFlag(FLAGS_kernel)) kernel.emplace(spec, payload);
  for (Series& series : all) {
    for (int i = 0; i < kWarmUpCalls; ++i) {
      series.last = series.call();
      echo.RoundTrip(series.request);
    }
  }
  for (int round = 0; round < rounds; ++round) {
    for (Series& series : all) MeasureRound(*client, series, echo, calls);
    if (kernel.has_value()) kernel->MeasureRound(all.front().request, calls);
  }
  if (streams) OkOrDie(stream->Close(), "stream");
  Json reports = Json::array();
  for (Series& series : all) {
    reports.push_back(Report(series, kernel.has_value() ? &*kernel : nullptr, absl::GetFlag(FLAGS_check)));
  }
  return Json{{"shape", ShapeText(spec)},
              {"spin_us", absl::GetFlag(FLAGS_spin_us)},
              {"rounds", rounds},
              {"calls_per_round", calls},
              {"request_bytes", all.front().request.ByteSizeLong()},
              {"response_bytes", all.front().last.ByteSizeLong()},
              {"echo_response_bytes", echo.RoundTrip(all.front().request).ByteSizeLong()},
              {"kernel", kernel.has_value() ? kernel->Report() : Json()},
              {"goal_overhead_ratio", 1.2},
              {"results", std::move(reports)}};
}

}  // namespace gemmd
