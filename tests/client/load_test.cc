// SPDX-License-Identifier: Apache-2.0
// gemmload's parts that need no daemon: histogram, pacer, mix, report.
#include "client/latency_histogram.h"
#include "client/load_mix.h"
#include "client/load_report.h"
#include "client/pacer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <random>

namespace gemmd {
namespace {

TEST(LatencyHistogramTest, KeepsThreeDigitsOverTheWholeRange) {
  for (uint64_t value = 1; value < LatencyHistogram::kMaxNanos; value = value * 5 / 4 + 1) {
    LatencyHistogram histogram;
    histogram.Record(value);
    histogram.Record(LatencyHistogram::kMaxNanos);
    EXPECT_GE(histogram.Quantile(0.5), value);
    EXPECT_LE(static_cast<double>(histogram.Quantile(0.5)), 1.001 * static_cast<double>(value));
  }
}

TEST(LatencyHistogramTest, QuantilesAreOfTheRecordedValues) {
  LatencyHistogram histogram;
  for (uint64_t i = 1; i <= 1000; ++i) histogram.Record(i);
  EXPECT_EQ(histogram.Quantile(0.5), 500u);
  EXPECT_EQ(histogram.Quantile(0.99), 990u);
  EXPECT_EQ(histogram.Quantile(1), 1000u);
  EXPECT_DOUBLE_EQ(histogram.mean(), 500.5);
}

TEST(LatencyHistogramTest, EmptyGivesZero) { EXPECT_EQ(LatencyHistogram().Quantile(0.99), 0u); }

TEST(LatencyHistogramTest, MergeCountsBoth) {
  LatencyHistogram first;
  LatencyHistogram second;
  first.Record(10);
  second.Record(1000);
  first.Merge(second);
  EXPECT_EQ(first.count(), 2u);
  EXPECT_EQ(first.max(), 1000u);
  EXPECT_EQ(first.Quantile(0.5), 10u);
}

TEST(LatencyHistogramTest, ValuesBeyondTheRangeCountAsItsEnd) {
  LatencyHistogram histogram;
  histogram.Record(~uint64_t{0});
  EXPECT_EQ(histogram.max(), LatencyHistogram::kMaxNanos);
}

TEST(PacerTest, ConstantArrivalsDoNotDrift) {
  Pacer pacer(Arrival::kConstant, 3, absl::UnixEpoch(), 1);
  absl::Time last;
  for (int i = 0; i <= 3000; ++i) last = pacer.Next();
  EXPECT_EQ(last, absl::UnixEpoch() + absl::Seconds(1000));
}

TEST(PacerTest, PoissonArrivalsHaveTheRate) {
  Pacer pacer(Arrival::kPoisson, 100, absl::UnixEpoch(), 1);
  absl::Time previous = absl::UnixEpoch();
  for (int i = 0; i < 100000; ++i) {
    const absl::Time next = pacer.Next();
    EXPECT_GE(next, previous);
    previous = next;
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(previous - absl::UnixEpoch()), 1000, 20);
}

TEST(LoadMixTest, ZipfRoutesEachTokenToDifferentExperts) {
  const std::vector<int64_t> sizes = ZipfGroupSizes({.tokens = 100, .top_k = 4, .groups = 16, .skew = 1.2}, 1);
  EXPECT_EQ(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), 400);
  for (const int64_t size : sizes) EXPECT_LE(size, 100);
  EXPECT_GT(sizes[0], sizes[15]);
}

TEST(LoadMixTest, ReadsLinesAndSkipsComments) {
  const auto mix = ParseMix("# decode\n2.5 dense 16 128 256\n\n1 masked 8 128 256 4 # moe\n");
  ASSERT_TRUE(mix.ok()) << mix.status();
  ASSERT_EQ(mix->size(), 2u);
  EXPECT_EQ((*mix)[0].share, 2.5);
  EXPECT_EQ((*mix)[1].spec.groups, 4);
}

TEST(LoadMixTest, BadLinesAreRefused) {
  for (const char* text : {"", "1 dense 16 128", "0 dense 16 128 256", "1 sparse 1 1 1", "1 dense a b c"}) {
    EXPECT_FALSE(ParseMix(text).ok()) << text;
  }
}

TEST(LoadReportTest, ObjectiveIsJudgedByLatency) {
  LoadReport report;
  report.latency.Record(3'000'000);
  EXPECT_TRUE(CheckObjective(report, "p99=4ms,max=3.1ms").ok());
  EXPECT_EQ(CheckObjective(report, "p99=2ms").code(), absl::StatusCode::kFailedPrecondition);
}

TEST(LoadReportTest, SaysWhetherGpusAreShared) {
  LoadReport report;
  report.mps = {{"GPU-a", true}, {"GPU-b", false}};
  EXPECT_NE(ToText(report).find("GPU-a: CUDA MPS on\nGPU-b: CUDA MPS off\n"), std::string::npos) << ToText(report);
  EXPECT_EQ(ToJson(report)["mps"]["GPU-b"], false);
  EXPECT_EQ(ToText(LoadReport()).find("MPS"), std::string::npos);
}

TEST(LoadMixTest, TheMoePresetHasExpertsOfAnySize) {
  const auto mix = LoadMix("moe", {.tokens = 4, .groups = 8, .n = 4096, .k = 7168}, 1);
  ASSERT_TRUE(mix.ok()) << mix.status();
  EXPECT_EQ(mix->front().spec.n, 4096);
  EXPECT_EQ(mix->front().spec.k, 7168);
  EXPECT_EQ(LoadMix("moe", {.n = 0}, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(LoadReportTest, MalformedObjectiveIsRefused) {
  for (const char* text : {"p99", "p98=1ms", "p99=soon", "=1ms"}) {
    EXPECT_EQ(CheckObjective({}, text).code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace gemmd
