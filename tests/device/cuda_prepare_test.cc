// SPDX-License-Identifier: Apache-2.0
// CudaDevice::Prepare: the kernel that it makes ready is the one that the first job of the shape runs, so that no job
// meets the fallback. Each test has a device of its own, which has compiled nothing but the fallbacks.
#include "tests/device/cuda_jobs_fixture.h"

#include "gtest/gtest.h"

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <vector>

namespace gemmd {
namespace {

class CudaPrepareTest : public CudaJobsTest {
 protected:
  uint64_t Zeros(int64_t byte_size) { return Region(Place::kGpu, Bytes(static_cast<size_t>(byte_size))); }
  OperandDescriptor Operand(DType dtype, std::initializer_list<int64_t> shape) {
    return Matrix(Zeros(std::accumulate(shape.begin(), shape.end(), ByteSize(dtype), std::multiplies<int64_t>())),
                  dtype, shape);
  }
  OperandDescriptor Groups(Place place, const std::vector<int32_t>& values) {
    return Matrix(Region(place, BytesOf(values)), DType::kI32, {static_cast<int64_t>(values.size())});
  }

  // `shape` names the job's kernel; `expected` is what selection says of it.
  void ExpectReady(const PrepareShape& shape, const GemmShape& expected, const JobDescriptor& job) {
    const GemmTraits traits = SelectConfig(expected, launcher().sms()).traits;
    ASSERT_FALSE(traits == FallbackConfig(expected).traits) << "the shape shows nothing";
    const absl::StatusOr<PrepareResult> first = device_->Prepare(shape);
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ(first->kernels_ready, 1u);
    EXPECT_EQ(first->kernels_compiled, 1u);
    const absl::StatusOr<PrepareResult> second = device_->Prepare(shape);
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_EQ(second->kernels_ready, 1u);
    EXPECT_EQ(second->kernels_compiled, 0u);
    ExpectNoFallback(traits, job);
  }

  void ExpectNoFallback(const GemmTraits& traits, const JobDescriptor& job) {
    const uint64_t hits = counters_.ReadCounts().kernel_hits;
    const uint64_t misses = counters_.ReadCounts().kernel_misses;
    Run(Checked(job));
    EXPECT_EQ(Describe(launcher().last_config().traits), Describe(traits));
    EXPECT_TRUE(launcher().last_config().traits == traits);
    EXPECT_EQ(counters_.ReadCounts().kernel_hits, hits + 1);
    EXPECT_EQ(counters_.ReadCounts().kernel_misses, misses);
  }

  // [m,k] times [n,k].
  JobDescriptor DenseJob(Scaling scaling, DType d, int64_t m, int64_t n, int64_t k) {
    const bool fp8 = scaling != Scaling::kNone;
    JobDescriptor job;
    job.op = Op::kDense;
    job.scaling = scaling;
    job.operand(OperandIndex::kA) = Operand(fp8 ? DType::kE4m3 : DType::kBf16, {m, k});
    job.operand(OperandIndex::kB) = Operand(fp8 ? DType::kE4m3 : DType::kBf16, {n, k});
    job.operand(OperandIndex::kD) = Operand(d, {m, n});
    if (!fp8) return job;
    job.operand(OperandIndex::kSfa) = Operand(DType::kF32, {m, BlocksOf(k)});
    job.operand(OperandIndex::kSfb) = Operand(DType::kF32, {scaling == Scaling::k1D1D ? n : BlocksOf(n), BlocksOf(k)});
    return job;
  }
};

PrepareShape ShapeOf(Op op, Scaling scaling, DType d, int64_t m, int64_t n, int64_t k, int64_t groups) {
  PrepareShape shape;
  shape.op = op;
  shape.scaling = scaling;
  shape.d_dtype = d;
  shape.m = m;
  shape.n = n;
  shape.k = k;
  shape.groups = groups;
  return shape;
}

TEST_F(CudaPrepareTest, TheFirstDenseJobRunsThePreparedKernel) {
  constexpr int64_t kM = 8, kN = 576, kK = 528;
  struct Kind {
    Scaling scaling;
    KernelScaling kernel;
    DType d;
    KernelOutput output;
  };
  for (const Kind& kind : {Kind{Scaling::k1D2D, KernelScaling::kRowBlock, DType::kBf16, KernelOutput::kBf16},
                           Kind{Scaling::k1D2D, KernelScaling::kRowBlock, DType::kF32, KernelOutput::kF32},
                           Kind{Scaling::k1D1D, KernelScaling::kRowRow, DType::kF32, KernelOutput::kF32},
                           Kind{Scaling::kNone, KernelScaling::kBf16, DType::kBf16, KernelOutput::kBf16}}) {
    SCOPED_TRACE(Name(kind.scaling));
    ExpectReady(ShapeOf(Op::kDense, kind.scaling, kind.d, kM, kN, kK, 0),
                {kind.kernel, kind.output, Grouping::kDense, kN, kK, {kM}}, DenseJob(kind.scaling, kind.d, kM, kN, kK));
  }
}

TEST_F(CudaPrepareTest, WithoutMTheKernelsOfAllRowCountsThatAreToldApartAreReady) {
  constexpr int64_t kN = 576, kK = 528;
  const absl::StatusOr<PrepareResult> result =
      device_->Prepare(ShapeOf(Op::kDense, Scaling::k1D2D, DType::kBf16, 0, kN, kK, 0));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->kernels_ready, 1u);
  for (const int64_t m : {1, 16, 64, 256, 1024, 4096}) {
    SCOPED_TRACE(m);
    const GemmShape shape{KernelScaling::kRowBlock, KernelOutput::kBf16, Grouping::kDense, kN, kK, {m}};
    ExpectNoFallback(SelectConfig(shape, launcher().sms()).traits, DenseJob(Scaling::k1D2D, DType::kBf16, m, kN, kK));
  }
}

// M rows in all, spread over the groups.
TEST_F(CudaPrepareTest, TheFirstContiguousJobRunsThePreparedKernel) {
  constexpr int64_t kM = 64, kN = 576, kK = 528, kGroups = 4;
  JobDescriptor job;
  job.op = Op::kMGroupedContiguous;
  job.scaling = Scaling::k1D2D;
  job.group_encoding = GroupEncoding::kOffsets;
  job.operand(OperandIndex::kA) = Operand(DType::kE4m3, {kM, kK});
  job.operand(OperandIndex::kSfa) = Operand(DType::kF32, {kM, BlocksOf(kK)});
  job.operand(OperandIndex::kB) = Operand(DType::kE4m3, {kGroups, kN, kK});
  job.operand(OperandIndex::kSfb) = Operand(DType::kF32, {kGroups, BlocksOf(kN), BlocksOf(kK)});
  job.operand(OperandIndex::kD) = Operand(DType::kBf16, {kM, kN});
  job.operand(OperandIndex::kGroups) = Groups(Place::kHost, {0, 16, 32, 48, 64});
  ExpectReady(ShapeOf(Op::kMGroupedContiguous, Scaling::k1D2D, DType::kBf16, kM, kN, kK, kGroups),
              {KernelScaling::kRowBlock, KernelOutput::kBf16, Grouping::kRows, kN, kK, {16, 16, 16, 16}}, job);
}

// M_max rows in each group: exactly those where only the GPU knows the rows.
TEST_F(CudaPrepareTest, TheFirstMaskedJobRunsThePreparedKernel) {
  constexpr int64_t kM = 24, kN = 576, kK = 528, kGroups = 4;
  JobDescriptor job;
  job.op = Op::kMGroupedMasked;
  job.scaling = Scaling::k1D2D;
  job.group_encoding = GroupEncoding::kMasked;
  job.operand(OperandIndex::kA) = Operand(DType::kE4m3, {kGroups, kM, kK});
  job.operand(OperandIndex::kSfa) = Operand(DType::kF32, {kGroups, kM, BlocksOf(kK)});
  job.operand(OperandIndex::kB) = Operand(DType::kE4m3, {kGroups, kN, kK});
  job.operand(OperandIndex::kSfb) = Operand(DType::kF32, {kGroups, BlocksOf(kN), BlocksOf(kK)});
  job.operand(OperandIndex::kD) = Operand(DType::kBf16, {kGroups, kM, kN});
  job.operand(OperandIndex::kGroups) = Groups(Place::kGpu, {24, 0, 7, 1});
  const GemmShape shape{KernelScaling::kRowBlock, KernelOutput::kBf16, Grouping::kRows, kN, kK, {kM, kM, kM, kM}};
  ExpectReady(ShapeOf(Op::kMGroupedMasked, Scaling::k1D2D, DType::kBf16, kM, kN, kK, kGroups), shape, job);
  job.operand(OperandIndex::kGroups) = Groups(Place::kHost, {24, 24, 24, 24});
  ExpectNoFallback(SelectConfig(shape, launcher().sms()).traits, job);
}

// K of all groups together.
TEST_F(CudaPrepareTest, TheFirstKGroupedJobRunsThePreparedKernel) {
  constexpr int64_t kM = 512, kN = 264, kKOfGroup = 512, kGroups = 8, kK = kGroups * kKOfGroup;
  JobDescriptor job;
  job.op = Op::kKGrouped;
  job.scaling = Scaling::k1D1D;
  job.group_encoding = GroupEncoding::kKSizes;
  job.operand(OperandIndex::kA) = Operand(DType::kE4m3, {kM * kK});
  job.operand(OperandIndex::kSfa) = Operand(DType::kF32, {kM, BlocksOf(kK)});
  job.operand(OperandIndex::kB) = Operand(DType::kE4m3, {kN * kK});
  job.operand(OperandIndex::kSfb) = Operand(DType::kF32, {kN, BlocksOf(kK)});
  job.operand(OperandIndex::kD) = Operand(DType::kF32, {kGroups, kM, kN});
  job.operand(OperandIndex::kGroups) = Groups(Place::kHost, std::vector<int32_t>(kGroups, kKOfGroup));
  ExpectReady(
      ShapeOf(Op::kKGrouped, Scaling::k1D1D, DType::kF32, kM, kN, kK, kGroups),
      {KernelScaling::kRowRow, KernelOutput::kF32, Grouping::kDepth, kN, kKOfGroup, std::vector<int64_t>(kGroups, kM)},
      job);
}

TEST_F(CudaPrepareTest, TheFirstJobThatAddsRunsThePreparedKernel) {
  constexpr int64_t kM = 8, kN = 576, kK = 528;
  PrepareShape shape = ShapeOf(Op::kDense, Scaling::k1D2D, DType::kF32, kM, kN, kK, 0);
  shape.accumulate = true;
  JobDescriptor job = DenseJob(Scaling::k1D2D, DType::kF32, kM, kN, kK);
  job.flags |= kFlagAccumulate;
  ExpectReady(shape, {KernelScaling::kRowBlock, KernelOutput::kF32Add, Grouping::kDense, kN, kK, {kM}}, job);
}

TEST_F(CudaPrepareTest, WhatIsReadyFromTheStartNeedsNoCompile) {
  for (const Op op : {Op::kQuantize, Op::kCopy}) {
    const absl::StatusOr<PrepareResult> result =
        device_->Prepare(ShapeOf(op, Scaling::kUnset, DType::kNone, 8, 0, 128, 0));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->kernels_compiled, 0u);
  }
}

}  // namespace
}  // namespace gemmd
