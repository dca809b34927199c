// SPDX-License-Identifier: Apache-2.0
#include "server/drain_gate.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>

namespace gemmd {
namespace {

TEST(DrainGateTest, AClosedGateRefuses) {
  DrainGate gate;
  EXPECT_TRUE(gate.Enter().ok());
  gate.Close();
  EXPECT_EQ(gate.Enter().status().code(), absl::StatusCode::kUnavailable);
}

TEST(DrainGateTest, PassesAreCountedWhileTheyLive) {
  DrainGate gate;
  {
    absl::StatusOr<DrainGate::Pass> pass = gate.Enter();
    ASSERT_TRUE(pass.ok());
    DrainGate::Pass moved = *std::move(pass);
    EXPECT_EQ(gate.passes(), 1u);
  }
  EXPECT_EQ(gate.passes(), 0u);
}

TEST(DrainGateTest, WaitEmptyEndsWhenTheLastPassGoes) {
  DrainGate gate;
  absl::StatusOr<DrainGate::Pass> pass = gate.Enter();
  ASSERT_TRUE(pass.ok());
  gate.Close();
  EXPECT_FALSE(gate.WaitEmpty(absl::ZeroDuration()));
  std::thread other([held = *std::move(pass)] {});
  EXPECT_TRUE(gate.WaitEmpty(absl::Seconds(30)));
  other.join();
}

}  // namespace
}  // namespace gemmd
