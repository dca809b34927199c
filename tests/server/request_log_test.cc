// SPDX-License-Identifier: Apache-2.0
#include "server/request_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

constexpr char kSampled[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
constexpr char kNotSampled[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

class RequestLogTest : public ::testing::Test {
 protected:
  void Answer(uint64_t request_id, const std::string& traceparent = "") {
    TracedRequest request;
    request.context = log_.Begin(traceparent);
    request.request_id = request_id;
    log_.End(request, absl::OkStatus());
  }
  std::vector<uint64_t> Ids() const {
    std::vector<uint64_t> ids;
    for (const TracedRequest& request : log_.Latest()) ids.push_back(request.request_id);
    return ids;
  }

  int malformed_ = 0;
  RequestLog log_{4, [this] { ++malformed_; }};
};

TEST_F(RequestLogTest, TheLatestAreKeptInOrder) {
  for (uint64_t id = 1; id <= 11; ++id) Answer(id);
  EXPECT_EQ(Ids(), (std::vector<uint64_t>{8, 9, 10, 11}));
}

TEST_F(RequestLogTest, AnEmptyLogHasNothing) { EXPECT_TRUE(Ids().empty()); }

TEST_F(RequestLogTest, TheTraceOfTheCallerIsTaken) {
  Answer(1, kSampled);
  ASSERT_EQ(log_.Latest().size(), 1u);
  EXPECT_EQ(FormatTraceparent(log_.Latest()[0].context), kSampled);
  EXPECT_EQ(malformed_, 0);
}

TEST_F(RequestLogTest, WhatIsNotSampledIsNotRemembered) {
  Answer(1, kNotSampled);
  EXPECT_TRUE(Ids().empty());
  EXPECT_EQ(malformed_, 0);
}

TEST_F(RequestLogTest, WithoutATraceparentATraceBegins) {
  Answer(1);
  Answer(2);
  const std::vector<TracedRequest> requests = log_.Latest();
  EXPECT_NE(requests[0].context.trace_id, TraceId{});
  EXPECT_NE(requests[0].context.trace_id, requests[1].context.trace_id);
  EXPECT_EQ(requests[0].context.span_id, 0u);
  EXPECT_EQ(malformed_, 0);
}

TEST_F(RequestLogTest, AMalformedTraceparentIsCountedAndIgnored) {
  Answer(1, "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01");
  Answer(2, std::string(100'000, '0'));
  EXPECT_EQ(malformed_, 2);
  EXPECT_EQ(Ids(), (std::vector<uint64_t>{1, 2}));
}

TEST_F(RequestLogTest, SpanIdsDoNotRepeat) {
  std::set<uint64_t> ids;
  for (int i = 0; i < 10'000; ++i) ids.insert(log_.NewSpanId());
  EXPECT_EQ(ids.size(), 10'000u);
  EXPECT_EQ(ids.count(0), 0u);
}

TEST(RequestLogCapacityTest, NoneKeepsNothing) {
  RequestLog log(0, [] {});
  log.End(TracedRequest{.context = log.Begin(kSampled)}, absl::OkStatus());
  EXPECT_TRUE(log.Latest().empty());
}

// Each request is written whole: its fields agree with one another whenever it is read.
TEST(RequestLogThreadsTest, ReadersSeeWholeRequests) {
  RequestLog log(16, [] {});
  constexpr int kWriters = 3;
  std::atomic<int> running{kWriters};
  std::vector<std::thread> writers;
  for (uint64_t writer = 0; writer < kWriters; ++writer) {
    writers.emplace_back([&, writer] {
      for (uint64_t i = 0; i < 3000; ++i) {
        const uint64_t id = i * kWriters + writer;
        TracedRequest request;
        request.context.sampled = true;
        request.request_id = request.received_ns = request.answered_ns = id;
        log.End(request, absl::OkStatus());
      }
      running.fetch_sub(1);
    });
  }
  while (running.load() > 0) {
    for (const TracedRequest& request : log.Latest()) {
      ASSERT_EQ(request.request_id, request.received_ns);
      ASSERT_EQ(request.request_id, request.answered_ns);
    }
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(log.Latest().size(), 16u);
}

}  // namespace
}  // namespace gemmd
