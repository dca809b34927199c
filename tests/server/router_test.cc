// SPDX-License-Identifier: Apache-2.0
#include "server/router.h"

#include <gtest/gtest.h>

#include <vector>

namespace gemmd {
namespace {

JobDescriptor Dense(int64_t m, int64_t n, int64_t k) {
  JobDescriptor job;
  job.op = Op::kDense;
  OperandDescriptor& a = job.operand(OperandIndex::kA);
  a.region = 1;
  a.dtype = DType::kE4m3;
  a.rank = 2;
  a.shape[0] = m;
  a.shape[1] = k;
  OperandDescriptor& d = job.operand(OperandIndex::kD);
  d.region = 1;
  d.dtype = DType::kBf16;
  d.rank = 2;
  d.shape[0] = m;
  d.shape[1] = n;
  return job;
}

TEST(RouterTest, TheReadyWorkerWithLeastWorkTakesTheJob) {
  const std::vector<WorkerLoad> loads = {{true, 5}, {false, 0}, {true, 3}, {true, 3}};
  EXPECT_EQ(LeastLoaded(loads), 2);
}

TEST(RouterTest, NobodyTakesAJobWhenNoneIsReady) {
  const std::vector<WorkerLoad> loads = {{false, 0}, {false, 1}};
  EXPECT_EQ(LeastLoaded(loads), std::nullopt);
  EXPECT_EQ(LeastLoaded({}), std::nullopt);
}

TEST(RouterTest, DenseFlopsAreTwiceTheProductOfTheExtents) { EXPECT_EQ(OfferedFlops(Dense(3, 5, 7)), 2 * 3 * 5 * 7); }

TEST(RouterTest, KGroupedFlopsCountTheWholeOfA) {
  JobDescriptor job;
  job.op = Op::kKGrouped;
  OperandDescriptor& a = job.operand(OperandIndex::kA);
  a.rank = 1;
  a.shape[0] = 16 * 96;  // M 16, sum of K_g 96.
  OperandDescriptor& d = job.operand(OperandIndex::kD);
  d.rank = 3;
  d.shape[0] = 2;
  d.shape[1] = 16;
  d.shape[2] = 8;
  EXPECT_EQ(OfferedFlops(job), 2 * 16 * 8 * 96);
}

TEST(RouterTest, MoreRowsAreMoreWork) {
  EXPECT_LT(PredictWork(Dense(1, 4096, 4096)), PredictWork(Dense(64, 4096, 4096)));
}

TEST(RouterTest, ImpossibleShapesAreNoWork) {
  EXPECT_EQ(OfferedFlops(Dense(-1, 5, 7)), 0);
  JobDescriptor job = Dense(1, 1, 1);
  job.operand(OperandIndex::kA).rank = 255;
  job.operand(OperandIndex::kD).rank = 255;
  EXPECT_EQ(OfferedFlops(job), 0);
}

}  // namespace
}  // namespace gemmd
