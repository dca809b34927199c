// SPDX-License-Identifier: Apache-2.0
#include "server/restart_policy.h"

#include "proto/control.h"

#include <gtest/gtest.h>

namespace gemmd {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr int kKilled = -9;

TEST(RestartPolicyTest, TheFirstRestartIsImmediate) {
  RestartPolicy policy({});
  const RestartDecision decision = policy.OnDeath(kSecond, kKilled);
  EXPECT_FALSE(decision.quarantine);
  EXPECT_EQ(decision.restart_at_ns, kSecond);
}

TEST(RestartPolicyTest, LaterRestartsWaitTwiceAsLongEachTime) {
  const RestartLimits limits;
  RestartPolicy policy(limits);
  policy.OnDeath(kSecond, kKilled);
  EXPECT_EQ(policy.OnDeath(kSecond, kKilled).restart_at_ns, kSecond + limits.first_backoff_ns);
  EXPECT_EQ(policy.OnDeath(kSecond, kKilled).restart_at_ns, kSecond + 2 * limits.first_backoff_ns);
  EXPECT_EQ(policy.OnDeath(kSecond, kKilled).restart_at_ns, kSecond + 4 * limits.first_backoff_ns);
}

TEST(RestartPolicyTest, ThePauseIsBounded) {
  RestartPolicy policy({.max_deaths = 100});
  RestartDecision last;
  for (int i = 0; i < 50; ++i) last = policy.OnDeath(kSecond, kKilled);
  EXPECT_EQ(last.restart_at_ns, kSecond + RestartLimits{}.max_backoff_ns);
}

TEST(RestartPolicyTest, TheFifthDeathWithinTheWindowQuarantines) {
  RestartPolicy policy({});
  for (uint64_t i = 0; i < 4; ++i) EXPECT_FALSE(policy.OnDeath((i + 1) * kSecond, kKilled).quarantine);
  EXPECT_TRUE(policy.OnDeath(5 * kSecond, kKilled).quarantine);
}

TEST(RestartPolicyTest, DeathsOutsideTheWindowAreForgotten) {
  RestartPolicy policy({});
  for (uint64_t i = 1; i < 50; ++i) {
    const RestartDecision decision = policy.OnDeath(i * 61 * kSecond, kExitDeviceFault);
    EXPECT_FALSE(decision.quarantine);
    EXPECT_EQ(decision.restart_at_ns, i * 61 * kSecond);
  }
}

TEST(RestartPolicyTest, AWorkerWithoutItsDeviceIsNotStartedAgain) {
  RestartPolicy policy({});
  EXPECT_TRUE(policy.OnDeath(kSecond, kExitNoDevice).quarantine);
}

TEST(RestartReasonTest, TheExitStatusSaysWhy) {
  EXPECT_EQ(RestartReasonOf(kExitDeviceFault), RestartReason::kDeviceFault);
  EXPECT_EQ(RestartReasonOf(kExitProtocolError), RestartReason::kProtocolError);
  EXPECT_EQ(RestartReasonOf(-9), RestartReason::kSignal);
  EXPECT_EQ(RestartReasonOf(0), RestartReason::kExit);
  EXPECT_EQ(RestartReasonOf(1), RestartReason::kExit);
}

}  // namespace
}  // namespace gemmd
