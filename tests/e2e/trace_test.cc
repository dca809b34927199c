// SPDX-License-Identifier: Apache-2.0
// From a client's traceparent to the file that a trace viewer opens, and to the lines of the log.
#include "client/client.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr TraceContext kTrace{{0x4bf92f3577b34da6, 0xa3ce929d0e0e4736}, 0x00f067aa0ba902b7, true};
constexpr char kTraceId[] = "4bf92f3577b34da6a3ce929d0e0e4736";

v1::RunRequest SmallRequest() {
  static const std::vector<uint16_t> ones(size_t{8} * 16, 0x3f80);
  return ToRequest(DenseCall{.scaling = Scaling::kNone,
                             .a = Inline<uint16_t>(ones, DType::kBf16, {8, 16}),
                             .b = Inline<uint16_t>(ones, DType::kBf16, {8, 16}),
                             .d = InlineResult(DType::kF32)});
}

class TraceTest : public ::testing::Test {
 protected:
  void Start(const testing::DaemonOptions& options = {}) {
    absl::StatusOr<std::unique_ptr<testing::Daemon>> daemon = testing::Daemon::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  testing::ProgramResult Gemmctl(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {testing::BinaryDirectory() + "/gemmctl", "--server=" + daemon_->address()});
    const auto result = testing::RunProgram(std::move(arguments), kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(testing::ProgramResult());
  }

  // The requests that the daemon remembers, by trace id.
  std::map<std::string, v1::RequestTrace> Traces() const {
    std::map<std::string, v1::RequestTrace> traces;
    const absl::StatusOr<v1::GetTraceResponse> response = client_->GetTrace();
    EXPECT_TRUE(response.ok()) << response.status();
    if (!response.ok()) return traces;
    for (const v1::RequestTrace& request : response->requests()) traces[request.trace_id()] = request;
    return traces;
  }

  // Sends the metadata as it is.
  grpc::Status RunWith(const std::vector<std::string>& traceparents) {
    grpc::ClientContext context;
    for (const std::string& traceparent : traceparents) context.AddMetadata("traceparent", traceparent);
    v1::RunResponse response;
    return v1::Gemm::NewStub(client_->channel())->Run(&context, SmallRequest(), &response);
  }

  // Every line of the log, which must all be objects.
  std::vector<Json> JsonLog() const {
    std::vector<Json> lines;
    for (const absl::string_view line : absl::StrSplit(daemon_->Log(), '\n', absl::SkipEmpty())) {
      lines.push_back(Json::parse(line, nullptr, false));
      EXPECT_TRUE(lines.back().is_object()) << line;
    }
    return lines;
  }

  std::unique_ptr<testing::Daemon> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_F(TraceTest, TheFileHasTheRequestUnderTheTraceOfItsCaller) {
  Start();
  ASSERT_TRUE(client_->Run(SmallRequest(), {.trace = kTrace}).ok());
  const testing::TemporaryDirectory directory;
  const std::string path = directory.path() + "/trace.json";
  const testing::ProgramResult result = Gemmctl({"trace", "--output=" + path});
  EXPECT_EQ(result.exit_status, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("1 requests in "));
  std::ifstream file(path);
  const Json trace = Json::parse(file, nullptr, false);
  ASSERT_TRUE(trace.is_object());
  std::set<std::string> kinds;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    kinds.insert(event["cat"]);
    EXPECT_GE(event["dur"], 0.0);
    if (event["cat"] == "device") {
      EXPECT_EQ(event["name"], "dense 8x8x16");
      EXPECT_EQ(event["args"]["trace_ids"], Json({kTraceId}));
    } else {
      EXPECT_EQ(event["args"]["trace_id"], kTraceId);
    }
    if (event["cat"] == "decode") {
      EXPECT_EQ(event["args"]["parent_span_id"], "00f067aa0ba902b7");
    }
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"decode", "queue", "device", "reply"}));
}

TEST_F(TraceTest, WithoutAFileTheTraceGoesToStandardOutput) {
  Start();
  const testing::ProgramResult result = Gemmctl({"trace"});
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_TRUE(Json::parse(result.output, nullptr, false)["traceEvents"].is_array()) << result.output;
}

TEST_F(TraceTest, AFileThatCannotBeWrittenIsAnError) {
  Start();
  const testing::ProgramResult result = Gemmctl({"trace", "--output=/nowhere/at/all.json"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.output, HasSubstr("/nowhere/at/all.json"));
}

TEST_F(TraceTest, TopShowsWhatWasAnsweredOfLate) {
  Start();
  ASSERT_TRUE(client_->Run(SmallRequest(), {.trace = kTrace}).ok());
  const testing::ProgramResult result = Gemmctl({"top", "--updates=1", "--interval=1h", "--json"});
  EXPECT_EQ(result.exit_status, 0) << result.output;
  const Json view = Json::parse(result.output, nullptr, false);
  ASSERT_TRUE(view.is_object()) << result.output;
  ASSERT_EQ(view["operations"].size(), 1u);
  EXPECT_EQ(view["operations"][0]["op"], "dense");
  EXPECT_GT(view["operations"][0]["requests_per_second"], 0.0);
  EXPECT_EQ(view["workers"][0]["state"], "READY");
  const testing::ProgramResult text = Gemmctl({"top", "--updates=2", "--interval=10ms"});
  EXPECT_EQ(text.exit_status, 0);
  EXPECT_THAT(text.output, HasSubstr("1 sessions"));
  EXPECT_EQ(text.output.find('\x1b'), std::string::npos) << "not a terminal";
  EXPECT_EQ(Gemmctl({"top", "--updates=-1"}).exit_status, 1);
}

TEST_F(TraceTest, TimesFollowEachOther) {
  Start();
  ASSERT_TRUE(client_->Run(SmallRequest(), {.trace = kTrace}).ok());
  const v1::RequestTrace trace = Traces()[kTraceId];
  EXPECT_EQ(trace.op(), "dense");
  EXPECT_EQ(trace.worker(), 0);
  EXPECT_EQ(trace.batch_jobs(), 1u);
  EXPECT_GT(trace.received_ns(), 0u);
  EXPECT_LE(trace.received_ns(), trace.submitted_ns());
  EXPECT_LE(trace.submitted_ns(), trace.launched_ns());
  EXPECT_LE(trace.launched_ns(), trace.finished_ns());
  EXPECT_LE(trace.finished_ns(), trace.completed_ns());
  EXPECT_LE(trace.completed_ns(), trace.answered_ns());
}

TEST_F(TraceTest, RequestsOfAStreamHaveTheirOwnTraceOrTheCalls) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("traceparent", FormatTraceparent(kTrace));
  const auto stub = v1::Gemm::NewStub(client_->channel());
  const auto stream = stub->Stream(&context);
  v1::RunRequest request = SmallRequest();
  request.set_request_id(1);
  ASSERT_TRUE(stream->Write(request));
  request.set_request_id(2);
  request.set_traceparent(FormatTraceparent({{1, 2}, 3, true}));
  ASSERT_TRUE(stream->Write(request));
  request.set_request_id(3);
  request.set_traceparent(FormatTraceparent({{1, 3}, 3, false}));
  ASSERT_TRUE(stream->Write(request));
  stream->WritesDone();
  v1::RunResponse response;
  while (stream->Read(&response)) EXPECT_EQ(response.status().code(), 0) << response.status().message();
  ASSERT_TRUE(stream->Finish().ok());
  auto traces = Traces();
  EXPECT_EQ(traces.size(), 2u);
  EXPECT_EQ(traces[kTraceId].request_id(), 1u);
  EXPECT_EQ(traces[TraceIdHex({1, 2})].request_id(), 2u);
  EXPECT_EQ(traces[TraceIdHex({1, 2})].parent_span_id(), "0000000000000003");
}

TEST_F(TraceTest, AMalformedTraceparentIsCountedAndTheRequestServed) {
  Start();
  EXPECT_TRUE(RunWith({"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"}).ok());
  EXPECT_TRUE(RunWith({FormatTraceparent(kTrace), FormatTraceparent(kTrace)}).ok());
  const absl::StatusOr<double> malformed = daemon_->Metric("gemmd_malformed_traceparents_total");
  ASSERT_TRUE(malformed.ok()) << malformed.status();
  EXPECT_EQ(*malformed, 2);
  const auto traces = Traces();
  EXPECT_EQ(traces.size(), 2u);
  EXPECT_EQ(traces.count(kTraceId), 0u);
  for (const auto& [id, trace] : traces) EXPECT_EQ(trace.parent_span_id(), "");
}

TEST_F(TraceTest, WhatIsRefusedIsRememberedToo) {
  Start();
  v1::RunRequest request;
  EXPECT_EQ(client_->Run(request, {.trace = kTrace}).status().code(), absl::StatusCode::kInvalidArgument);
  const v1::RequestTrace trace = Traces()[kTraceId];
  EXPECT_EQ(trace.code(), 3);
  EXPECT_EQ(trace.op(), "none");
  EXPECT_EQ(trace.worker(), -1);
  EXPECT_EQ(trace.submitted_ns(), 0u);
}

TEST_F(TraceTest, TheTraceIsForTheUnixSocketOnly) {
  Start({.flags = {}, .tcp = true});
  const auto remote = Client::Connect(daemon_->tcp_address());
  ASSERT_TRUE(remote.ok()) << remote.status();
  EXPECT_EQ((*remote)->GetTrace().status().code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(TraceTest, JsonLinesNameTheRequestAndItsTrace) {
  Start({.flags = {"--log_format=json", "--log_level=debug"}, .keep_log = true});
  v1::RunRequest request = SmallRequest();
  request.set_request_id(42);
  ASSERT_TRUE(client_->Run(request, {.trace = kTrace}).ok());
  const auto about_it = [this] {
    for (const Json& line : JsonLog()) {
      if (line.value("trace_id", "") == kTraceId && line.value("request_id", 0) == 42) return line;
    }
    return Json();
  };
  // The line is written before the answer is handed to gRPC.
  const Json line = about_it();
  ASSERT_TRUE(line.is_object());
  EXPECT_EQ(line["program"], "gemmd");
  EXPECT_EQ(line["level"], "debug");
  EXPECT_THAT(line["message"].get<std::string>(), HasSubstr("op=dense m=8 n=8 k=16"));
  std::set<std::string> programs;
  for (const Json& other : JsonLog()) programs.insert(other["program"]);
  EXPECT_EQ(programs, (std::set<std::string>{"gemmd", "gemmd-worker"}));
}

TEST_F(TraceTest, TheLevelOfWorkersChangesToo) {
  Start({.flags = {"--log_level=error"}, .keep_log = true});
  EXPECT_EQ(daemon_->Log(), "");
  EXPECT_EQ(Gemmctl({"loglevel", "debug"}).exit_status, 0);
  EXPECT_TRUE(testing::WaitUntil(kPatience, [this] {
    return absl::StrContains(daemon_->Log(), "[gemmd-worker] [info] log level: debug\n");
  })) << daemon_->Log();
  ASSERT_TRUE(client_->Run(SmallRequest(), {.trace = kTrace}).ok());
  EXPECT_THAT(daemon_->Log(), HasSubstr(absl::StrCat(" trace_id=", kTraceId, " request_id=0\n")));
}

TEST_F(TraceTest, UnknownLevelsAndFormatsAreRefused) {
  for (const auto& [flag, reason] :
       {std::pair("--log_format=xml", "--log_format: expected text or json, got \"xml\""),
        std::pair("--log_level=loud", "--log_level: expected trace, debug, info, warning, error, critical or off"),
        std::pair("--trace_requests=-1", "--trace_requests: expected 0 to ")}) {
    const auto result = testing::RunProgram(
        {testing::BinaryDirectory() + "/gemmd", "--workers=cpu", "--listen=unix:/tmp/never", flag}, kPatience);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->exit_status, 1);
    EXPECT_THAT(result->output, HasSubstr(reason));
  }
}

}  // namespace
}  // namespace gemmd
