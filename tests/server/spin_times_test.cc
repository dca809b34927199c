// SPDX-License-Identifier: Apache-2.0
#include "server/spin_times.h"

#include <gtest/gtest.h>

namespace gemmd {
namespace {

void ExpectNone(const SpinTimes& times) {
  EXPECT_EQ(times.completion_ns, 0u);
  EXPECT_EQ(times.assist_ns, 0u);
  EXPECT_EQ(times.network_ns, 0u);
}

TEST(SpinTimesTest, NobodyPollsOnOneCoreOrIfToldNotTo) {
  for (const bool on_gpu : {false, true}) {
    ExpectNone(SpinTimesFor(-1, 1, on_gpu));
    ExpectNone(SpinTimesFor(300, 1, on_gpu));
    ExpectNone(SpinTimesFor(0, 64, on_gpu));
  }
}

TEST(SpinTimesTest, FewCoresPollBrieflyAndNotTheNetwork) {
  for (const int cores : {2, 7}) {
    const SpinTimes times = SpinTimesFor(-1, cores, true);
    EXPECT_EQ(times.completion_ns, 100'000u);
    EXPECT_EQ(times.assist_ns, 50'000u);
    EXPECT_EQ(times.network_ns, 0u);
  }
}

TEST(SpinTimesTest, ManyCoresPollForALargeProduct) {
  const SpinTimes times = SpinTimesFor(-1, 8, true);
  EXPECT_EQ(times.completion_ns, 500'000u);
  EXPECT_EQ(times.assist_ns, 50'000u);
  EXPECT_EQ(times.network_ns, 500'000u);
}

TEST(SpinTimesTest, TheFlagIsTheLongestOfAll) {
  const SpinTimes brief = SpinTimesFor(20, 64, true);
  EXPECT_EQ(brief.completion_ns, 20'000u);
  EXPECT_EQ(brief.assist_ns, 20'000u);
  EXPECT_EQ(brief.network_ns, 20'000u);
  const SpinTimes lasting = SpinTimesFor(1000, 2, true);
  EXPECT_EQ(lasting.completion_ns, 1'000'000u);
  EXPECT_EQ(lasting.assist_ns, 50'000u);
  EXPECT_EQ(lasting.network_ns, 1'000'000u);
}

TEST(SpinTimesTest, BesideAWorkerOnTheCpuTheNetworkIsLeftAlone) {
  for (const int spin_us : {-1, 1000}) {
    const SpinTimes times = SpinTimesFor(spin_us, 64, false);
    EXPECT_GT(times.completion_ns, 0u);
    EXPECT_EQ(times.network_ns, 0u);
  }
}

}  // namespace
}  // namespace gemmd
