// SPDX-License-Identifier: Apache-2.0
// What CpuDevice promises beyond right products: batches, threads, memory that shrinks, limits.
#include "tests/gpu/cpu_device_fixture.h"

namespace gemmd::cpu_test {
namespace {

// A dense BF16 job on `b`.
Gemm DenseJob(const Tensor& a, const Tensor& b, const Tensor& d) {
  Gemm gemm;
  gemm.op = Op::kDense;
  gemm.scaling = Scaling::kNone;
  gemm.m = a.operand.shape[0];
  gemm.n = b.operand.shape[0];
  gemm.k = a.operand.shape[1];
  gemm.operand(OperandIndex::kA) = a.operand;
  gemm.operand(OperandIndex::kB) = b.operand;
  gemm.operand(OperandIndex::kD) = d.operand;
  return gemm;
}

TEST_F(CpuDeviceTest, AJobGivesTheSameBitsAloneAndInABatch) {
  const int64_t n = 520, k = 1040;
  Tensor b = MakeMatrix({}, DType::kBf16, 0, n, k);
  FillAll(b, 1);
  std::vector<Tensor> as, alone, together;
  std::vector<Gemm> batch;
  for (const int64_t m : {1, 3, 17, 256, 300, 5, 700}) {
    FillAll(as.emplace_back(MakeMatrix({}, DType::kBf16, 0, m, k)), 1);
    alone.push_back(MakeMatrix({}, DType::kF32, 0, m, n));
    together.push_back(MakeMatrix({}, DType::kF32, 0, m, n));
    ExpectOk(DenseJob(as.back(), b, alone.back()));
    batch.push_back(DenseJob(as.back(), b, together.back()));
  }
  for (const Reason& reason : Run(batch)) EXPECT_EQ(reason.rule, Rule::kNone);
  for (size_t i = 0; i < as.size(); ++i) {
    EXPECT_EQ(std::memcmp(alone[i].mapping.data(), together[i].mapping.data(), alone[i].mapping.byte_size()), 0) << i;
  }
}

TEST_F(CpuDeviceTest, Bf16ResultsAreTheF32ResultsRounded) {
  Tensor a = MakeMatrix({}, DType::kBf16, 0, 300, 1040), b = MakeMatrix({}, DType::kBf16, 0, 520, 1040);
  Tensor wide = MakeMatrix({}, DType::kF32, 0, 300, 520), narrow = MakeMatrix({}, DType::kBf16, 0, 300, 520);
  FillAll(a, 1);
  FillAll(b, 1);
  ExpectOk(DenseJob(a, b, wide));
  ExpectOk(DenseJob(a, b, narrow));
  const auto* sums = reinterpret_cast<const float*>(wide.data());
  const auto* rounded = reinterpret_cast<const uint16_t*>(narrow.data());
  for (int64_t i = 0; i < 300 * 520; ++i) ASSERT_EQ(rounded[i], FloatToBf16(sums[i])) << i;
}

TEST_F(CpuDeviceTest, ThreadsDoNotChangeTheBits) {
  Tensor a = MakeMatrix({}, DType::kBf16, 0, 300, 1040), b = MakeMatrix({}, DType::kBf16, 0, 520, 1040);
  Tensor many = MakeMatrix({}, DType::kF32, 0, 300, 520), one = MakeMatrix({}, DType::kF32, 0, 300, 520);
  FillAll(a, 1);
  FillAll(b, 1);
  ExpectOk(DenseJob(a, b, many));
  Open({.threads = 1});
  ExpectOk(DenseJob(a, b, one));
  EXPECT_EQ(std::memcmp(many.mapping.data(), one.mapping.data(), many.mapping.byte_size()), 0);
}

TEST_F(CpuDeviceTest, ATruncatedRegionFailsItsJobAlone) {
  Tensor b = MakeMatrix({}, DType::kBf16, 0, 64, 64), a = MakeMatrix({}, DType::kBf16, 0, 8, 64);
  Tensor shrunk = MakeMatrix({RegionKind::kSharedMemory}, DType::kBf16, 0, 8, 64);
  Tensor shrunk_d = MakeMatrix({RegionKind::kSharedMemory}, DType::kF32, 0, 8, 64);
  Tensor d = MakeMatrix({}, DType::kF32, 0, 8, 64), other_d = MakeMatrix({}, DType::kF32, 0, 8, 64);
  FillAll(a, 1);
  FillAll(b, 1);
  ASSERT_EQ(ftruncate(shrunk.fd.get(), 300), 0);
  ASSERT_EQ(ftruncate(shrunk_d.fd.get(), 300), 0);
  const auto reasons = Run({DenseJob(shrunk, b, other_d), DenseJob(a, b, d), DenseJob(a, b, shrunk_d)});
  EXPECT_EQ(reasons[0].rule, Rule::kRegionShrank);
  EXPECT_EQ(reasons[0].field, JobField::kA);
  EXPECT_EQ(reasons[1].rule, Rule::kNone);
  EXPECT_EQ(reasons[2].rule, Rule::kRegionShrank);
  EXPECT_EQ(reasons[2].field, JobField::kD);
  EXPECT_EQ(lseek(shrunk_d.fd.get(), 0, SEEK_END), 300);
}

TEST_F(CpuDeviceTest, AJobBeyondTheScratchLimitIsRefused) {
  Open({.threads = 1, .scratch_limit_bytes = 100});
  Tensor b = MakeMatrix({}, DType::kBf16, 0, 64, 64);
  Tensor a = MakeMatrix({RegionKind::kSharedMemory}, DType::kBf16, 0, 8, 64), d = MakeMatrix({}, DType::kF32, 0, 8, 64);
  const auto reasons = Run({DenseJob(a, b, d)});
  EXPECT_EQ(reasons[0].rule, Rule::kOutOfMemory);
  EXPECT_EQ(reasons[0].got, 8 * 64 * 2);
}

TEST_F(CpuDeviceTest, ASmallBatchIsDoneBeforeSubmitReturns) {
  // Sanitizers and busy machines slow the measured rate down; the limit is not what this test is about.
  Open({.threads = 2, .small_batch_ns = 1'000'000'000});
  Tensor b = MakeMatrix({}, DType::kBf16, 0, 128, 128), a = MakeMatrix({}, DType::kBf16, 0, 16, 128);
  Tensor d = MakeMatrix({}, DType::kF32, 0, 16, 128);
  Batch batch;
  batch.jobs.emplace_back().gemm = DenseJob(a, b, d);
  bool done = false;
  device_->Submit(std::move(batch), [&](Batch, BatchResult) { done = true; });
  EXPECT_TRUE(done);
}

TEST_F(CpuDeviceTest, WaitReturnsWhenAllBatchesAreDone) {
  Tensor b = MakeMatrix({}, DType::kBf16, 0, 512, 512), a = MakeMatrix({}, DType::kBf16, 0, 512, 512);
  Tensor d = MakeMatrix({}, DType::kF32, 0, 512, 512);
  int done = 0;
  for (int i = 0; i < 4; ++i) {
    Batch batch;
    batch.jobs.emplace_back().gemm = DenseJob(a, b, d);
    device_->Submit(std::move(batch), [&](Batch, BatchResult result) {
      EXPECT_LE(result.launched_ns, result.finished_ns);
      ++done;
    });
  }
  device_->Wait();
  EXPECT_EQ(done, 4);
}

TEST_F(CpuDeviceTest, TensorMemoryIsZeroedAndOutlivesItsMapping) {
  auto allocation = device_->Allocate(10'000);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  std::vector<char> bytes(10'000, 'x');
  ASSERT_TRUE(allocation->memory->ReadBytes(0, bytes.size(), bytes.data()).ok());
  EXPECT_EQ(bytes, std::vector<char>(10'000));
  auto again = device_->Map({RegionKind::kTensor, Access::kReadWrite, 10'000}, std::move(allocation->fd));
  EXPECT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(absl::IsResourceExhausted(device_->Allocate(uint64_t{1} << 60).status()));
}

TEST_F(CpuDeviceTest, UnsealedMemoryIsNotMapped) {
  UniqueFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(fd.get(), 4096), 0);
  const auto memory = device_->Map({RegionKind::kHost, Access::kReadOnly, 4096}, std::move(fd));
  EXPECT_TRUE(absl::IsInvalidArgument(memory.status())) << memory.status();
}

TEST_F(CpuDeviceTest, TraitsNameTheMachine) {
  EXPECT_EQ(device_->traits().device, "cpu");
  EXPECT_FALSE(device_->traits().name.empty());
  EXPECT_GT(device_->traits().memory_bytes, 0u);
  EXPECT_EQ(device_->traits().cores, 3u);
}

TEST_F(CpuDeviceTest, MoreWorkIsPredictedToTakeLonger) {
  Gemm gemm;
  gemm.op = Op::kDense;
  gemm.m = gemm.n = gemm.k = 1024;
  const uint64_t small = device_->PredictNanos(gemm);
  gemm.m = 4096;
  EXPECT_GT(device_->PredictNanos(gemm), 2 * small);
}

}  // namespace
}  // namespace gemmd::cpu_test
