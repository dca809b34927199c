// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/nvtx_range.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace gemmd {
namespace {

Job DenseJob(int64_t m) {
  Job job;
  job.gemm.op = Op::kDense;
  job.gemm.m = m;
  job.gemm.n = 2112;
  job.gemm.k = 7168;
  return job;
}

TEST(NvtxRangeTest, ABatchIsNamedByItsOperationAndShapes) {
  Batch batch;
  batch.jobs.push_back(DenseJob(64));
  EXPECT_EQ(RangeName(batch), "dense n=2112 k=7168, 1 job, 64 rows");
  batch.jobs.push_back(DenseJob(16));
  EXPECT_EQ(RangeName(batch), "dense n=2112 k=7168, 2 jobs, 80 rows");
}

TEST(NvtxRangeTest, GroupsAreNamedToo) {
  Batch batch;
  batch.jobs.push_back(DenseJob(64));
  batch.jobs[0].gemm.op = Op::kMGroupedContiguous;
  batch.jobs[0].gemm.groups = 4;
  batch.jobs[0].gemm.segments = {{0, 0, 24}, {3, 24, 64}};
  EXPECT_EQ(RangeName(batch), "m_grouped_contiguous n=2112 k=7168 groups=4, 1 job, 64 rows");
}

TEST(NvtxRangeTest, WithoutAProfilerARangeDoesNothing) {
  Batch batch;
  batch.jobs.push_back(DenseJob(1));
  const NvtxDomain domain;
  const NvtxDomain::Range range = domain.Begin(batch);
}

}  // namespace
}  // namespace gemmd
