// SPDX-License-Identifier: Apache-2.0
// m-grouped masked products on the CUDA device, from job descriptor to bits: counts in host memory, which the job check
// reads, and in GPU memory, which only the kernels read; rows of host memory that nobody multiplies; jobs that share a
// launch. Bits are compared with the plainest way of each: counts and operands of one job in host memory.
#include "tests/device/cuda_jobs_fixture.h"

#include "gtest/gtest.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr int64_t kGuardBytes = 4096;  // After D.

// A job's own operands, as bytes.
struct MaskedProduct {
  int64_t m_max = 0;
  std::vector<int32_t> masked_m;
  bool bf16_a = false;  // Quantized on the way.
  bool sfa_m_major = false;
  Bytes a;
  Bytes sfa;
};

class CudaMaskedTest : public CudaJobsTest {
 protected:
  static constexpr int64_t kGroups = 6;

  void MakeWeights(int64_t n, int64_t k) {
    n_ = n;
    k_ = k;
    blocks_ = BlocksOf(k);
    b_ = Region(Place::kGpu, E4m3(kGroups * n * k));
    sfb_ = Region(Place::kGpu, Scales(kGroups * BlocksOf(n) * blocks_));
  }

  MaskedProduct MakeProduct(int64_t m_max, std::vector<int32_t> masked_m) {
    MaskedProduct product{m_max, std::move(masked_m), false, false, E4m3(kGroups * m_max * k_), {}};
    product.sfa = Scales(kGroups * m_max * blocks_);
    return product;
  }
  MaskedProduct MakeBf16Product(int64_t m_max, std::vector<int32_t> masked_m) {
    return {m_max, std::move(masked_m), true, false, Bf16(kGroups * m_max * k_), {}};
  }

  // The job, and the region of its D.
  std::pair<Gemm, uint64_t> Check(const MaskedProduct& product, Place operands, Place counts) {
    const int64_t m = product.m_max;
    const Bytes d(static_cast<size_t>(kGroups * m * n_ * 2 + kGuardBytes), kPattern);
    Bytes masked_m(kGroups * sizeof(int32_t));
    std::memcpy(masked_m.data(), product.masked_m.data(), masked_m.size());
    JobDescriptor job;
    job.op = Op::kMGroupedMasked;
    job.scaling = Scaling::k1D2D;
    job.group_encoding = GroupEncoding::kMasked;
    const uint64_t d_region = Region(operands, d);
    job.operand(OperandIndex::kA) =
        Matrix(Region(operands, product.a), product.bf16_a ? DType::kBf16 : DType::kE4m3, {kGroups, m, k_});
    if (!product.bf16_a) {
      OperandDescriptor& sfa = job.operand(OperandIndex::kSfa);
      sfa = Matrix(Region(operands, product.sfa), DType::kF32, {kGroups, m, blocks_});
      if (product.sfa_m_major) sfa.strides[1] = 1, sfa.strides[2] = m;
    }
    job.operand(OperandIndex::kB) = Matrix(b_, DType::kE4m3, {kGroups, n_, k_});
    job.operand(OperandIndex::kSfb) = Matrix(sfb_, DType::kF32, {kGroups, BlocksOf(n_), blocks_});
    job.operand(OperandIndex::kD) = Matrix(d_region, DType::kBf16, {kGroups, m, n_});
    job.operand(OperandIndex::kGroups) = Matrix(Region(counts, masked_m), DType::kI32, {kGroups});
    return {Checked(job), d_region};
  }

  // D and what lies behind it after the job ran alone.
  Bytes Alone(const MaskedProduct& product, Place operands, Place counts) {
    auto [gemm, d] = Check(product, operands, counts);
    EXPECT_EQ(gemm.masked_on_device, operands == Place::kGpu && counts == Place::kGpu);
    Batch batch;
    batch.jobs.emplace_back().gemm = std::move(gemm);
    Run(std::move(batch));
    return Read(d);
  }

  // How many bytes changed outside the rows that the product has.
  int64_t WrongOutside(const MaskedProduct& product, const Bytes& d) const {
    int64_t wrong = 0;
    for (int64_t group = 0; group < kGroups; ++group) {
      const int64_t rows = product.masked_m[static_cast<size_t>(group)];
      const auto begin = d.begin() + (group * product.m_max + rows) * n_ * 2;
      const auto end = d.begin() + (group + 1) * product.m_max * n_ * 2;
      wrong += end - begin - std::count(begin, end, kPattern);
    }
    return wrong + kGuardBytes - std::count(d.end() - kGuardBytes, d.end(), kPattern);
  }

  // Runs the products as one batch, with operands of the first and of the others in different places.
  void ExpectSharedLaunch(const std::vector<MaskedProduct>& products) {
    for (const auto& [first, others] : {std::pair(Place::kGpu, Place::kGpu), std::pair(Place::kHost, Place::kHost),
                                        std::pair(Place::kGpu, Place::kHost)}) {
      std::vector<Bytes> expected;
      std::vector<uint64_t> outputs;
      Batch batch;
      for (const MaskedProduct& product : products) {
        const Place place = batch.jobs.empty() ? first : others;
        expected.push_back(Alone(product, place, Place::kHost));
        auto [gemm, d] = Check(product, place, Place::kHost);
        batch.jobs.emplace_back().gemm = std::move(gemm);
        outputs.push_back(d);
      }
      const uint64_t before = launcher().launches();
      Run(std::move(batch));
      EXPECT_EQ(launcher().launches(), before + 1);
      for (size_t i = 0; i < products.size(); ++i) {
        EXPECT_EQ(WrongOutside(products[i], expected[i]), 0) << "job " << i;
        EXPECT_EQ(Read(outputs[i]), expected[i]) << "job " << i;
      }
    }
  }

  int64_t n_ = 0;
  int64_t k_ = 0;
  int64_t blocks_ = 0;
  uint64_t b_ = 0;
  uint64_t sfb_ = 0;
};

TEST_F(CudaMaskedTest, CountsInGpuMemoryGiveTheBitsOfThoseThatTheCheckReads) {
  MakeWeights(392, 400);
  for (const int64_t m_max : {8, 72, 300}) {
    const auto most = static_cast<int32_t>(m_max);
    for (const bool bf16_a : {false, true}) {
      const std::vector<int32_t> counts = {5, 0, most, most / 2, 0, 1};
      MaskedProduct product = bf16_a ? MakeBf16Product(m_max, counts) : MakeProduct(m_max, counts);
      product.sfa_m_major = m_max == 72;
      const Bytes expected = Alone(product, Place::kHost, Place::kHost);
      EXPECT_EQ(WrongOutside(product, expected), 0) << m_max;
      EXPECT_EQ(Alone(product, Place::kGpu, Place::kHost), expected) << m_max;
      EXPECT_EQ(Alone(product, Place::kGpu, Place::kGpu), expected) << m_max;
      EXPECT_EQ(Alone(product, Place::kHost, Place::kGpu), expected) << m_max;
    }
  }
}

TEST_F(CudaMaskedTest, CountsInGpuMemoryAreClampedAndNothingOutsideIsWritten) {
  MakeWeights(264, 272);
  MaskedProduct product = MakeProduct(40, {0, 40, 40, 7, 0, 40});
  const Bytes expected = Alone(product, Place::kHost, Place::kHost);
  EXPECT_EQ(WrongOutside(product, expected), 0);
  product.masked_m = {-3, 41, 2147483647, 7, -2147483647 - 1, 1000};
  EXPECT_EQ(Alone(product, Place::kGpu, Place::kGpu), expected);
}

TEST_F(CudaMaskedTest, NoRowsAtAllLeaveDAsItIs) {
  MakeWeights(264, 272);
  const MaskedProduct product = MakeProduct(40, {0, -1, 0, 0, 0, 0});
  const Bytes d = Alone(product, Place::kGpu, Place::kGpu);
  EXPECT_EQ(std::count(d.begin(), d.end(), kPattern), static_cast<int64_t>(d.size()));
}

// M_max is large enough that only the rows in use travel.
TEST_F(CudaMaskedTest, RowsOfHostMemoryThatNobodyMultipliesNeedNotTravel) {
  MakeWeights(136, 2064);
  for (const bool m_major : {false, true}) {
    MaskedProduct product = MakeProduct(768, {3, 0, 768, 130, 17, 1});
    product.sfa_m_major = m_major;
    EXPECT_EQ(Alone(product, Place::kHost, Place::kHost), Alone(product, Place::kGpu, Place::kHost)) << m_major;
  }
}

// Where only the GPU knows the rows in use, all are quantized.
TEST_F(CudaMaskedTest, RowsThatNobodyMultipliesNeedNotBeQuantized) {
  MakeWeights(136, 2064);
  const MaskedProduct product = MakeBf16Product(768, {3, 0, 768, 130, 17, 1});
  const Bytes expected = Alone(product, Place::kGpu, Place::kGpu);
  EXPECT_EQ(WrongOutside(product, expected), 0);
  EXPECT_EQ(Alone(product, Place::kGpu, Place::kHost), expected);
  EXPECT_EQ(Alone(product, Place::kHost, Place::kHost), expected);
}

TEST_F(CudaMaskedTest, JobsOnOneExpertStackShareALaunchAndGetTheirOwnBits) {
  MakeWeights(392, 656);
  std::vector<MaskedProduct> products = {MakeProduct(16, {3, 0, 16, 1, 0, 9}), MakeProduct(40, {0, 0, 40, 2, 33, 0}),
                                         MakeProduct(24, {24, 0, 5, 0, 1, 0}), MakeProduct(8, {0, 0, 0, 0, 0, 0})};
  products[1].sfa_m_major = products[2].sfa_m_major = true;
  ExpectSharedLaunch(products);
}

TEST_F(CudaMaskedTest, JobsThatShareALaunchAreQuantizedTogether) {
  MakeWeights(392, 656);
  ExpectSharedLaunch({MakeBf16Product(16, {3, 0, 16, 1, 0, 9}), MakeBf16Product(40, {0, 0, 40, 2, 33, 0}),
                      MakeBf16Product(8, {0, 0, 0, 0, 0, 0})});
}

TEST_F(CudaMaskedTest, JobsWhoseRowsAreReadFromTheGpuShareALaunchToo) {
  MakeWeights(392, 656);
  std::vector<MaskedProduct> products = {MakeProduct(16, {3, 0, 16, 1, 0, 9}), MakeProduct(40, {0, 0, 40, 2, 33, 0}),
                                         MakeProduct(24, {24, 0, 5, 0, 1, 0})};
  std::vector<Bytes> expected;
  std::vector<uint64_t> outputs;
  Batch batch;
  for (const MaskedProduct& product : products) {
    expected.push_back(Alone(product, Place::kHost, Place::kHost));
    MaskedProduct beyond = product;  // Brought into [0, M_max].
    for (int32_t& rows : beyond.masked_m) {
      if (rows == 0) rows = -7;
      if (rows == product.m_max) rows = 1 << 30;
    }
    auto [gemm, d] = Check(beyond, Place::kGpu, Place::kGpu);
    ASSERT_TRUE(gemm.masked_on_device);
    ReadMaskedRows(gemm);
    EXPECT_FALSE(gemm.masked_on_device);
    const Gemm known = Check(product, Place::kHost, Place::kHost).first;
    ASSERT_EQ(gemm.segments.size(), known.segments.size());
    for (size_t i = 0; i < known.segments.size(); ++i) {
      EXPECT_EQ(gemm.segments[i].group, known.segments[i].group);
      EXPECT_EQ(gemm.segments[i].end, known.segments[i].end);
    }
    batch.jobs.emplace_back().gemm = std::move(gemm);
    outputs.push_back(d);
  }
  const uint64_t before = launcher().launches();
  Run(std::move(batch));
  EXPECT_EQ(launcher().launches(), before + 1);
  for (size_t i = 0; i < products.size(); ++i) EXPECT_EQ(Read(outputs[i]), expected[i]) << "job " << i;
}

TEST_F(CudaMaskedTest, JobsWhoseRowsCostMoreToPackThanALaunchSavesRunEachForItself) {
  MakeWeights(1024, 128);
  const MaskedProduct product = MakeProduct(1500, {1500, 1500, 1500, 0, 0, 0});
  const Bytes expected = Alone(product, Place::kGpu, Place::kHost);
  Batch batch;
  std::vector<uint64_t> outputs;
  for (int i = 0; i < 2; ++i) {
    auto [gemm, d] = Check(product, Place::kGpu, Place::kHost);
    batch.jobs.emplace_back().gemm = std::move(gemm);
    outputs.push_back(d);
  }
  const uint64_t before = launcher().launches();
  Run(std::move(batch));
  EXPECT_EQ(launcher().launches(), before + 2);
  for (const uint64_t d : outputs) EXPECT_EQ(Read(d), expected);
}

}  // namespace
}  // namespace gemmd
