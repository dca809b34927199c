// SPDX-License-Identifier: Apache-2.0
// gemmctl demo: the operations and shapes of a DeepSeek-V3 layer through every transport and both call paths, each
// result checked against the FP64 reference.
#include "client/gemmctl_commands.h"
#include "client/problem.h"
#include "proto/job.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

#include <algorithm>
#include <cstdio>

namespace gemmd {
namespace {

using Json = nlohmann::json;

constexpr int kRuns = 3;  // The best is shown: the first one pages memory in.

struct DemoCase {
  const char* what;
  ProblemSpec spec;
  Transport transport;
  bool stream = false;
};

// Shapes of DeepSeek-V3: hidden 7168, q/kv down projection 2112, o projection from 16384, dense and expert MLP.
// Messages hold at most 64 MiB, so what is larger is never sent inline.
std::vector<DemoCase> DemoCases(bool on_gpu) {
  const ProblemSpec down{.m = 64, .n = 2112, .k = 7168};
  const ProblemSpec output{.m = 64, .n = 7168, .k = 2048};
  const ProblemSpec up{.m = 128, .n = 4096, .k = 7168};
  const ProblemSpec experts{.op = Op::kMGroupedContiguous,
                            .m = 64,
                            .n = 4096,
                            .k = 7168,
                            .groups = 8,
                            .group_sizes = {3, 20, 0, 9, 1, 16, 5, 10}};
  ProblemSpec row_index = experts;
  row_index.encoding = GroupEncoding::kRowIndex;
  row_index.groups = 2;
  row_index.group_sizes = {100, 60};
  ProblemSpec aligned_ends = row_index;
  aligned_ends.encoding = GroupEncoding::kAlignedEnds;
  const ProblemSpec masked{.op = Op::kMGroupedMasked, .m = 16, .n = 4096, .k = 7168, .groups = 4};
  const ProblemSpec gradient{
      .scaling = Scaling::k1D1D, .d_dtype = DType::kF32, .accumulate = true, .m = 1024, .n = 1024, .k = 2048};
  const ProblemSpec k_grouped{.op = Op::kKGrouped,
                              .scaling = Scaling::k1D1D,
                              .d_dtype = DType::kF32,
                              .accumulate = true,
                              .m = 512,
                              .n = 1024,
                              .k = 1536,
                              .groups = 4,
                              .group_sizes = {512, 128, 0, 896}};
  ProblemSpec w8a16 = down;
  w8a16.bf16_a = true;
  ProblemSpec experts_w8a16 = masked;
  experts_w8a16.bf16_a = true;
  const ProblemSpec bf16{.scaling = Scaling::kNone, .m = 64, .n = 2112, .k = 7168};
  const ProblemSpec quantize{.op = Op::kQuantize, .m = 128, .k = 7168};
  ProblemSpec quantize_square = quantize;
  quantize_square.block = QuantizeBlock::k128x128;
  ProblemSpec f32 = output;
  f32.d_dtype = DType::kF32;
  std::vector<DemoCase> cases = {
      {"q/kv down", down, Transport::kInline},
      {"q/kv down", down, Transport::kHost},
      {"q/kv down", down, Transport::kSharedMemory},
      {"q/kv down", down, Transport::kTensor},
      {"q/kv down", down, Transport::kHost, true},
      {"q/kv down", down, Transport::kTensor, true},
      {"mlp down", output, Transport::kInline, true},
      {"mlp down, f32", f32, Transport::kHost},
      {"mlp up", up, Transport::kHost},
      {"mlp up", up, Transport::kTensor},
      {"experts, offsets", experts, Transport::kHost},
      {"experts, offsets", experts, Transport::kTensor},
      {"experts, row index", row_index, Transport::kHost},
      {"experts, aligned", aligned_ends, Transport::kSharedMemory},
      {"experts, masked", masked, Transport::kHost},
      {"experts, masked", masked, Transport::kTensor},
      {"weight gradient", gradient, Transport::kHost},
      {"expert gradients", k_grouped, Transport::kHost},
      {"bf16 on fp8", w8a16, Transport::kTensor},
      {"bf16 on fp8, masked", experts_w8a16, Transport::kHost},
      {"bf16", bf16, Transport::kInline},
      {"bf16", bf16, Transport::kHost},
      {"quantize 1x128", quantize, Transport::kInline},
      {"quantize 128x128", quantize_square, Transport::kHost},
      {"q/kv down", down, Transport::kPool},
      {"mlp up", up, Transport::kPool, true},
      {"experts, masked", masked, Transport::kPool},
  };
  if (!on_gpu) return cases;
  for (const Transport transport : {Transport::kDevice, Transport::kDeviceIpc}) {
    cases.push_back({"q/kv down", down, transport});
    cases.push_back({"experts, masked", masked, transport});
    cases.push_back({"weight gradient", gradient, transport, true});
  }
  return cases;
}

// One operation by the path of the case.
absl::StatusOr<v1::RunResponse> RunOnce(Client* client, RunStream* stream, const v1::RunRequest& request) {
  if (stream == nullptr) return client->Run(request);
  absl::StatusOr<v1::RunResponse> result = absl::UnknownError("no answer");
  absl::Notification done;
  const absl::Status sent = stream->Submit(request, [&](absl::StatusOr<v1::RunResponse> response) {
    result = std::move(response);
    done.Notify();
  });
  if (!sent.ok()) return sent;
  done.WaitForNotification();
  return result;
}

struct DemoResult {
  absl::Duration time = absl::InfiniteDuration();
  reference::Error error;
};

absl::StatusOr<DemoResult> RunCase(Client* client, const DemoCase& demo, uint64_t seed) {
  std::shared_ptr<const Weights> weights;
  if (demo.spec.op != Op::kQuantize) {
    const auto made = Weights::Create(client, demo.spec, demo.transport, seed);
    if (!made.ok()) return made.status();
    weights = *made;
  }
  const auto problem = Problem::Create(client, demo.spec, demo.transport, weights, seed);
  if (!problem.ok()) return problem.status();
  const std::unique_ptr<RunStream> stream = demo.stream ? client->OpenStream() : nullptr;
  DemoResult result;
  for (int run = 0; run < kRuns; ++run) {
    if (absl::Status status = (*problem)->ResetResult(); !status.ok()) return status;
    const absl::Time start = absl::Now();
    const absl::StatusOr<v1::RunResponse> response = RunOnce(client, stream.get(), (*problem)->request());
    result.time = std::min(result.time, absl::Now() - start);
    if (!response.ok()) return response.status();
    if (run + 1 < kRuns) continue;
    const absl::StatusOr<reference::Error> error = (*problem)->Check(*response);
    if (!error.ok()) return error.status();
    result.error = *error;
  }
  return result;
}

std::string PathName(const DemoCase& demo) { return demo.stream ? "stream" : "unary"; }

}  // namespace

absl::Status RunDemo(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, options.connect);
  if (!client.ok()) return client.status();
  TextTable table({"what", "op", "shape", "transport", "path", "time", "GFLOP/s", "error", "check"});
  Json json = {{"results", Json::array()}};
  int failed = 0;
  const absl::StatusOr<v1::ServerInfo> info = (*client)->GetInfo();
  if (!info.ok()) return info.status();
  const bool on_gpu = std::any_of(info->workers().begin(), info->workers().end(),
                                  [](const v1::WorkerInfo& worker) { return worker.device() != kCpuDevice; });
  for (const DemoCase& demo : DemoCases(on_gpu)) {
    const absl::StatusOr<DemoResult> result = RunCase(client->get(), demo, options.seed);
    const std::string op(Name(demo.spec.op));
    const std::string transport(Name(demo.transport));
    Json row = {{"what", demo.what},
                {"op", op},
                {"shape", ShapeText(demo.spec)},
                {"transport", transport},
                {"path", PathName(demo)},
                {"passed", result.ok()}};
    if (result.ok()) {
      const double seconds = absl::ToDoubleSeconds(result->time);
      row["seconds"] = seconds;
      row["flops_per_second"] = FlopsOf(demo.spec) / seconds;
      row["relative_frobenius"] = result->error.relative_frobenius;
      table.Add({demo.what, op, ShapeText(demo.spec), transport, PathName(demo), NanosText(seconds * 1e9),
                 absl::StrFormat("%.1f", FlopsOf(demo.spec) / seconds / 1e9),
                 absl::StrFormat("%.1e", result->error.relative_frobenius), "ok"});
    } else {
      ++failed;
      row["error"] = result.status().ToString();
      std::fprintf(stderr, "gemmctl: %s, %s, %s: %s\n", demo.what, transport.c_str(), PathName(demo).c_str(),
                   result.status().ToString().c_str());
      table.Add({demo.what, op, ShapeText(demo.spec), transport, PathName(demo), "-", "-", "-", "FAILED"});
    }
    json["results"].push_back(std::move(row));
  }
  json["passed"] = failed == 0;
  Print(options, json, table.ToString());
  if (failed != 0) return absl::DataLossError(absl::StrCat("demo: ", failed, " checks failed"));
  return absl::OkStatus();
}

}  // namespace gemmd
