// SPDX-License-Identifier: Apache-2.0
#include "client/chrome_trace.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;

// Received at `at` us, then 1 us of each stage.
void Add(v1::GetTraceResponse& trace, const std::string& trace_id, uint64_t at, uint64_t launched) {
  v1::RequestTrace& request = *trace.add_requests();
  request.set_trace_id(trace_id);
  request.set_op("dense");
  request.set_m(1);
  request.set_n(2);
  request.set_k(3);
  request.set_batch_jobs(2);
  request.set_received_ns(at * 1000);
  request.set_submitted_ns(at * 1000 + 1000);
  request.set_launched_ns(launched * 1000);
  request.set_finished_ns(launched * 1000 + 1000);
  request.set_completed_ns(launched * 1000 + 2000);
  request.set_answered_ns(launched * 1000 + 3000);
}

std::vector<Json> Slices(const Json& trace, const std::string& kind) {
  std::vector<Json> slices;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] == "X" && event["cat"] == kind) slices.push_back(event);
  }
  return slices;
}

TEST(ChromeTraceTest, EachStageOfARequestIsASlice) {
  v1::GetTraceResponse trace;
  trace.set_now_ns(1'000'000'000);
  Add(trace, "aa", 100, 110);
  const Json json = ToChromeTrace(trace);
  ASSERT_EQ(Slices(json, "decode").size(), 1u);
  EXPECT_EQ(Slices(json, "decode")[0]["ts"], 0.0);
  EXPECT_EQ(Slices(json, "decode")[0]["dur"], 1.0);
  EXPECT_EQ(Slices(json, "decode")[0]["args"]["trace_id"], "aa");
  EXPECT_EQ(Slices(json, "queue")[0]["ts"], 1.0);
  EXPECT_EQ(Slices(json, "queue")[0]["dur"], 9.0);
  EXPECT_EQ(Slices(json, "device")[0]["ts"], 10.0);
  EXPECT_EQ(Slices(json, "device")[0]["name"], "dense 1x2x3 and 1 more");
  EXPECT_EQ(Slices(json, "reply")[0]["ts"], 12.0);
}

TEST(ChromeTraceTest, RequestsOfABatchShareItsSlice) {
  v1::GetTraceResponse trace;
  Add(trace, "aa", 100, 110);
  Add(trace, "bb", 102, 110);
  Add(trace, "cc", 104, 120);
  const std::vector<Json> batches = Slices(ToChromeTrace(trace), "device");
  ASSERT_EQ(batches.size(), 2u);
  EXPECT_EQ(batches[0]["args"]["trace_ids"], Json({"aa", "bb"}));
  EXPECT_EQ(batches[1]["args"]["trace_ids"], Json({"cc"}));
}

TEST(ChromeTraceTest, SlicesOfARowDoNotOverlap) {
  v1::GetTraceResponse trace;
  for (uint64_t i = 0; i < 20; ++i) Add(trace, "aa", 100 + i, 110 + 7 * i);
  const Json json = ToChromeTrace(trace);
  std::map<int, double> ends;
  std::map<int, std::string> kinds;
  for (const Json& event : json["traceEvents"]) {
    if (event["ph"] != "X") continue;
    const int row = event["tid"];
    EXPECT_LE(ends[row], event["ts"].get<double>());
    ends[row] = event["ts"].get<double>() + event["dur"].get<double>();
    EXPECT_EQ(kinds.emplace(row, event["cat"]).first->second, event["cat"]);
  }
  std::set<int> named;
  for (const Json& event : json["traceEvents"]) {
    if (event["name"] != "thread_name") continue;
    EXPECT_TRUE(named.insert(event["tid"].get<int>()).second);
  }
  EXPECT_EQ(named.size(), ends.size());
}

TEST(ChromeTraceTest, WhatWasRefusedIsADecodingOnly) {
  v1::GetTraceResponse trace;
  v1::RequestTrace& request = *trace.add_requests();
  request.set_worker(-1);
  request.set_code(3);
  request.set_received_ns(5000);
  request.set_answered_ns(9000);
  const Json json = ToChromeTrace(trace);
  EXPECT_EQ(Slices(json, "decode")[0]["dur"], 4.0);
  EXPECT_TRUE(Slices(json, "queue").empty());
  EXPECT_TRUE(Slices(json, "device").empty());
  EXPECT_TRUE(Slices(json, "reply").empty());
}

TEST(ChromeTraceTest, NoRequestsAreATraceToo) {
  const Json json = ToChromeTrace({});
  EXPECT_TRUE(Slices(json, "decode").empty());
  EXPECT_TRUE(json["traceEvents"].is_array());
}

}  // namespace
}  // namespace gemmd
