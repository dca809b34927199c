// SPDX-License-Identifier: Apache-2.0
#include "client/request_summary.h"

#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

// Answered at `at_ns`, `total_ns` after its receipt; 10 ns of queue, 20 of device.
void Add(v1::GetTraceResponse& trace, const std::string& op, uint64_t at_ns, uint64_t total_ns) {
  v1::RequestTrace& request = *trace.add_requests();
  request.set_op(op);
  request.set_received_ns(at_ns - total_ns);
  request.set_submitted_ns(at_ns - 40);
  request.set_launched_ns(at_ns - 30);
  request.set_finished_ns(at_ns - 10);
  request.set_answered_ns(at_ns);
  request.set_batch_jobs(3);
}

TEST(RequestSummaryTest, RequestsOfTheWhileAreCountedByOperation) {
  v1::GetTraceResponse trace;
  trace.set_now_ns(10 * kSecond);
  Add(trace, "dense", 7 * kSecond, 100);  // Before.
  for (uint64_t i = 1; i <= 100; ++i) Add(trace, "dense", 9 * kSecond + i, i * 1000);
  Add(trace, "quantize", 9 * kSecond + 500, 77);
  const auto summaries = Summarize(trace, 8 * kSecond);
  ASSERT_EQ(summaries.size(), 2u);
  EXPECT_EQ(summaries[0].op, "dense");
  EXPECT_EQ(summaries[0].requests, 100u);
  EXPECT_EQ(summaries[0].per_second, 50.0);
  EXPECT_EQ(summaries[0].p50_ns, 51'000u);
  EXPECT_EQ(summaries[0].p99_ns, 100'000u);
  EXPECT_EQ(summaries[0].queue_ns, 10);
  EXPECT_EQ(summaries[0].device_ns, 20);
  EXPECT_EQ(summaries[0].batch_jobs, 3);
  EXPECT_EQ(summaries[1].op, "quantize");
  EXPECT_EQ(summaries[1].p99_ns, 77u);
}

TEST(RequestSummaryTest, RatesAreThoseOfTheTimeThatIsRemembered) {
  v1::GetTraceResponse trace;
  trace.set_now_ns(10 * kSecond);
  Add(trace, "dense", 9 * kSecond, 100);
  Add(trace, "dense", 10 * kSecond, 100);
  EXPECT_EQ(Summarize(trace, 2 * kSecond)[0].per_second, 2.0);
}

TEST(RequestSummaryTest, WhatNoDeviceRanHasNoStages) {
  v1::GetTraceResponse trace;
  trace.set_now_ns(10 * kSecond);
  Add(trace, "none", 9 * kSecond, 100);
  trace.mutable_requests(0)->set_launched_ns(0);
  trace.mutable_requests(0)->set_code(3);
  const auto summaries = Summarize(trace, kSecond);
  EXPECT_EQ(summaries[0].failed, 1u);
  EXPECT_EQ(summaries[0].device_ns, 0);
  EXPECT_EQ(summaries[0].batch_jobs, 0);
}

TEST(RequestSummaryTest, NothingRememberedIsNothing) { EXPECT_TRUE(Summarize({}, 0).empty()); }

}  // namespace
}  // namespace gemmd
