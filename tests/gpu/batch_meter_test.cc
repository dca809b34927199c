// SPDX-License-Identifier: Apache-2.0
#include "gpu/batch_meter.h"

#include "tests/gpu/job_samples.h"

#include <gtest/gtest.h>

#include <utility>
#include <variant>
#include <vector>

namespace gemmd {
namespace {

using namespace testing;  // NOLINT: the samples.

constexpr auto kIn = static_cast<size_t>(Direction::kIn);
constexpr auto kOut = static_cast<size_t>(Direction::kOut);
constexpr auto kUseful = static_cast<size_t>(RowKind::kUseful);
constexpr auto kPadding = static_cast<size_t>(RowKind::kPadding);

class BatchMeterTest : public ::testing::Test {
 protected:
  Job Checked(const JobDescriptor& descriptor) const {
    auto checked = regions_.Check(descriptor);
    EXPECT_TRUE(std::holds_alternative<Gemm>(checked)) << Describe(std::get<Reason>(checked));
    Job job;
    job.gemm = std::get<Gemm>(std::move(checked));
    return job;
  }

  // From 1000 to 1000 + `duration_ns`.
  WorkerCounts Finish(Batch batch, const std::vector<Rule>& rules, uint64_t duration_ns = 500) {
    BatchResult result{.reasons = {}, .launched_ns = 1000, .finished_ns = 1000 + duration_ns};
    for (const Rule rule : rules) result.reasons.push_back({.field = JobField::kNone, .rule = rule});
    meter_.Start(1000);
    meter_.Finish(batch, result);
    return counters_.ReadCounts();
  }

  SampleRegions regions_;
  const WorkerCounters counters_ = *WorkerCounters::Create();
  BatchMeter meter_{counters_.counts()};
};

// One row of A with its scale factors, one of D, and one matrix B with its scale factors.
constexpr uint64_t kRowIn = kK + 2 * 4;
constexpr uint64_t kRowOut = kN * 2;
constexpr uint64_t kWeights = kN * kK + 2 * 2 * 4;

TEST_F(BatchMeterTest, WeightsAreReadOncePerBatch) {
  Batch batch;
  batch.jobs = {Checked(DenseJob()), Checked(DenseJob())};
  batch.close = BatchClose::kDrained;
  const WorkerCounts counts = Finish(std::move(batch), {Rule::kNone, Rule::kNone});
  EXPECT_EQ(counts.operand_bytes[kIn], 2 * kM * kRowIn + kWeights);
  EXPECT_EQ(counts.operand_bytes[kOut], 2 * kM * kRowOut);
  EXPECT_EQ(counts.flops(Op::kDense, ProductType::kE4m3), 2 * 2.0 * kM * kN * kK);
  EXPECT_EQ(counts.batch_jobs.sum, 2u);
  EXPECT_EQ(counts.batch_rows.sum, 2u * kM);
  EXPECT_EQ(counts.batch_groups.sum, 1u);
  EXPECT_EQ(counts.batch_closes[static_cast<size_t>(BatchClose::kDrained)], 1u);
}

TEST_F(BatchMeterTest, OnlyRowsInUseAndGroupsWithRowsAreRead) {
  std::vector<int32_t> index(kM, -1);
  index[0] = index[1] = 2;
  regions_.SetGroups(index);
  Batch batch;
  batch.jobs = {Checked(ContiguousJob(GroupEncoding::kRowIndex))};
  const WorkerCounts counts = Finish(std::move(batch), {Rule::kNone});
  EXPECT_EQ(counts.rows[kUseful], 2u);
  EXPECT_EQ(counts.rows[kPadding], uint64_t{kM} - 2);
  EXPECT_EQ(counts.batch_groups.sum, 1u);
  EXPECT_EQ(counts.operand_bytes[kIn], 2 * kRowIn + kWeights);
  EXPECT_EQ(counts.operand_bytes[kOut], 2 * kRowOut);
}

TEST_F(BatchMeterTest, MaskedRowsThatAreNotInUseArePadding) {
  regions_.SetGroups(std::vector<int32_t>{0, 3, 7});
  Batch batch;
  batch.jobs = {Checked(MaskedJob())};
  const int64_t all = batch.jobs[0].gemm.groups * batch.jobs[0].gemm.m;
  const WorkerCounts counts = Finish(std::move(batch), {Rule::kNone});
  EXPECT_EQ(counts.rows[kUseful], 10u);
  EXPECT_EQ(counts.rows[kPadding], static_cast<uint64_t>(all) - 10);
  EXPECT_EQ(counts.batch_groups.sum, 2u);
}

TEST_F(BatchMeterTest, AFailedJobIsNoWorkButPartOfItsBatch) {
  Batch batch;
  batch.jobs = {Checked(DenseJob()), Checked(DenseJob())};
  const WorkerCounts counts = Finish(std::move(batch), {Rule::kDeviceFailed, Rule::kNone});
  EXPECT_EQ(counts.batch_jobs.sum, 2u);
  EXPECT_EQ(counts.rows[kUseful], uint64_t{kM});
  EXPECT_EQ(counts.flops(Op::kDense, ProductType::kE4m3), 2.0 * kM * kN * kK);
}

TEST_F(BatchMeterTest, Bf16ProductsAreCountedApart) {
  Batch batch;
  batch.jobs = {Checked(DenseJob(Scaling::kNone))};
  const WorkerCounts counts = Finish(std::move(batch), {Rule::kNone});
  EXPECT_EQ(counts.flops(Op::kDense, ProductType::kBf16), 2.0 * kM * kN * kK);
  EXPECT_EQ(counts.flops(Op::kDense, ProductType::kE4m3), 0);
}

TEST_F(BatchMeterTest, OverlappingBatchesAreBusyTimeOnce) {
  Batch batch;
  batch.jobs = {Checked(DenseJob())};
  const auto result = [](uint64_t launched_ns, uint64_t finished_ns) {
    return BatchResult{.reasons = {Reason()}, .launched_ns = launched_ns, .finished_ns = finished_ns};
  };
  meter_.Start(1000);
  meter_.Start(1500);
  meter_.Finish(batch, result(1000, 2000));
  EXPECT_EQ(counters_.ReadCounts().busy_ns, 0u);  // Still busy.
  meter_.Finish(batch, result(1500, 3000));
  EXPECT_EQ(counters_.ReadCounts().busy_ns, 2000u);
  EXPECT_EQ(counters_.ReadCounts().batch_duration[static_cast<size_t>(Op::kDense)].sum, 2500u);
}

}  // namespace
}  // namespace gemmd
