// SPDX-License-Identifier: Apache-2.0
#include "server/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemmd {
namespace {

using ::testing::Pair;
using ::testing::UnorderedElementsAre;

WorkerSnapshot Worker(const char* device, WorkerState state) {
  WorkerSnapshot worker;
  worker.traits.device = device;
  worker.state = state;
  return worker;
}

TEST(HealthTest, AReadyWorkerServes) {
  EXPECT_THAT(ServingNames({Worker("cpu", WorkerState::kReady)}, false),
              UnorderedElementsAre(Pair("", true), Pair("gemmd.v1.Gemm", true), Pair("gemmd.v1.Gemm/cpu", true)));
}

TEST(HealthTest, OneReadyWorkerIsEnoughForTheDaemon) {
  EXPECT_THAT(ServingNames({Worker("a", WorkerState::kReady), Worker("b", WorkerState::kQuarantined)}, false),
              UnorderedElementsAre(Pair("", true), Pair("gemmd.v1.Gemm", true), Pair("gemmd.v1.Gemm/a", true),
                                   Pair("gemmd.v1.Gemm/b", false)));
}

TEST(HealthTest, ADeviceServesIfAnyOfItsWorkersDoes) {
  const auto names = ServingNames({Worker("cpu", WorkerState::kDead), Worker("cpu", WorkerState::kReady)}, false);
  EXPECT_TRUE(names.at("gemmd.v1.Gemm/cpu"));
}

TEST(HealthTest, WithoutAReadyWorkerNothingServes) {
  for (WorkerState state : {WorkerState::kStarting, WorkerState::kDead, WorkerState::kQuarantined}) {
    for (const auto& [name, serving] : ServingNames({Worker("cpu", state)}, false)) EXPECT_FALSE(serving) << name;
  }
}

TEST(HealthTest, ADrainEndsServing) {
  for (const auto& [name, serving] : ServingNames({Worker("cpu", WorkerState::kReady)}, true)) {
    EXPECT_FALSE(serving) << name;
  }
}

}  // namespace
}  // namespace gemmd
