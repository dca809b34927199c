// SPDX-License-Identifier: Apache-2.0
// Dense and m-grouped contiguous jobs that share a launch on the CUDA device, on random data: each gets the bits that
// it gets alone, wherever its operands are, and nothing else of its D changes. Masked jobs: cuda_masked_test.cc.
#include "tests/device/cuda_jobs_fixture.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr int64_t kGroups = 6;
constexpr int64_t kGuardBytes = 4096;  // After D.

// Elements of a row whose pitch is a multiple of 16 bytes.
int64_t PitchOf(int64_t columns, DType dtype) {
  const int64_t multiple = 16 / ByteSize(dtype);
  return (columns + multiple - 1) / multiple * multiple;
}

// What jobs that may share a launch have in common.
struct Kind {
  Op op = Op::kDense;
  Scaling scaling = Scaling::kUnset;
  DType a = DType::kNone;  // kBf16 where scaling is not kNone: quantized on the way.
  DType d = DType::kNone;
  int64_t n = 0;
  int64_t k = 0;

  bool fp8() const { return scaling != Scaling::kNone; }
  DType b() const { return fp8() ? DType::kE4m3 : DType::kBf16; }
  bool takes_sfa() const { return fp8() && a == DType::kE4m3; }
  std::string Name() const {
    return absl::StrCat(gemmd::Name(op), " ", gemmd::Name(scaling), " A ", gemmd::Name(a), " D ", gemmd::Name(d), " N",
                        n, " K", k);
  }
};

// Rows of one job, and whose they are.
struct Rows {
  int64_t m = 0;
  bool sfa_m_major = false;
  GroupEncoding encoding = GroupEncoding::kNone;
  uint32_t alignment = 0;
  std::vector<int32_t> groups = {};
};

// Regions with the same contents, by Place.
using Regions = std::array<uint64_t, 2>;
uint64_t At(const Regions& regions, Place place) { return regions[static_cast<size_t>(place)]; }

struct JobOperands {
  Rows rows;
  Regions a{};
  Regions sfa{};
};

struct Places {
  Place a = Place::kHost;
  Place b = Place::kHost;
  Place d = Place::kHost;
};

class CudaMergingTest : public CudaJobsTest {
 protected:
  Regions InBoth(const Bytes& bytes) { return {Region(Place::kHost, bytes), Region(Place::kGpu, bytes)}; }

  Bytes Elements(DType dtype, int64_t count) { return dtype == DType::kBf16 ? Bf16(count) : E4m3(count); }

  static OperandDescriptor RowsOf(uint64_t region, DType dtype, int64_t rows, int64_t columns) {
    OperandDescriptor operand = Matrix(region, dtype, {rows, columns});
    operand.strides[0] = PitchOf(columns, dtype);
    return operand;
  }

  void MakeWeights(const Kind& kind) {
    kind_ = kind;
    const int64_t groups = kind.op == Op::kDense ? 1 : kGroups;
    b_ = InBoth(Elements(kind.b(), groups * kind.n * PitchOf(kind.k, kind.b())));
    if (kind.fp8()) sfb_ = InBoth(Scales(groups * SfbRows() * BlocksOf(kind.k)));
  }
  int64_t SfbRows() const { return kind_.scaling == Scaling::k1D1D ? kind_.n : BlocksOf(kind_.n); }

  JobOperands MakeOperands(const Rows& rows) {
    JobOperands operands{rows, {}, {}};
    operands.a = InBoth(Elements(kind_.a, rows.m * PitchOf(kind_.k, kind_.a)));
    if (kind_.takes_sfa()) operands.sfa = InBoth(Scales(PitchOf(rows.m, DType::kF32) * BlocksOf(kind_.k)));
    return operands;
  }

  void SetWeights(JobDescriptor& job, Place place) const {
    const int64_t n = kind_.n;
    const int64_t k = kind_.k;
    const int64_t blocks = BlocksOf(k);
    OperandDescriptor& b = job.operand(OperandIndex::kB);
    b = RowsOf(At(b_, place), kind_.b(), n, k);
    if (kind_.op != Op::kDense) {
      b = Matrix(At(b_, place), kind_.b(), {kGroups, n, k});
      b.strides[1] = PitchOf(k, kind_.b());
      b.strides[0] = n * b.strides[1];
    }
    if (!kind_.fp8()) return;
    job.operand(OperandIndex::kSfb) = kind_.op == Op::kDense
                                          ? Matrix(At(sfb_, place), DType::kF32, {SfbRows(), blocks})
                                          : Matrix(At(sfb_, place), DType::kF32, {kGroups, SfbRows(), blocks});
  }

  // The job, and the region of its D.
  std::pair<Gemm, uint64_t> Check(const JobOperands& operands, const Places& places) {
    const Rows& rows = operands.rows;
    JobDescriptor job;
    job.op = kind_.op;
    job.scaling = kind_.scaling;
    job.operand(OperandIndex::kA) = RowsOf(At(operands.a, places.a), kind_.a, rows.m, kind_.k);
    if (kind_.takes_sfa()) {
      OperandDescriptor& sfa = job.operand(OperandIndex::kSfa);
      sfa = Matrix(At(operands.sfa, places.a), DType::kF32, {rows.m, BlocksOf(kind_.k)});
      if (rows.sfa_m_major) sfa.strides[0] = 1, sfa.strides[1] = PitchOf(rows.m, DType::kF32);
    }
    SetWeights(job, places.b);
    const uint64_t d = Region(places.d, Bytes(static_cast<size_t>(rows.m * RowBytes() + kGuardBytes), kPattern));
    job.operand(OperandIndex::kD) = RowsOf(d, kind_.d, rows.m, kind_.n);
    if (kind_.op == Op::kMGroupedContiguous) {
      job.group_encoding = rows.encoding;
      job.group_alignment = rows.alignment;
      job.operand(OperandIndex::kGroups) =
          Matrix(Region(Place::kHost, BytesOf(rows.groups)), DType::kI32, {static_cast<int64_t>(rows.groups.size())});
    }
    return {Checked(job), d};
  }
  int64_t RowBytes() const { return PitchOf(kind_.n, kind_.d) * ByteSize(kind_.d); }

  // What D and all around it hold after the job ran alone on operands of the host.
  Bytes Alone(const JobOperands& operands) {
    auto [gemm, region] = Check(operands, {});
    Run(std::move(gemm));
    return Read(region);
  }

  // Bytes that are not those of the rows' columns, and not as they were.
  int64_t WrongBetweenRows(const JobOperands& operands, const Bytes& d) const {
    int64_t wrong = 0;
    for (int64_t at = 0; at < static_cast<int64_t>(d.size()); ++at) {
      const bool outside = at >= operands.rows.m * RowBytes() || at % RowBytes() >= kind_.n * ByteSize(kind_.d);
      wrong += outside && d[static_cast<size_t>(at)] != kPattern;
    }
    return wrong;
  }

  // Runs all jobs as one batch.
  void ExpectOneLaunchWithTheseBits(const std::vector<JobOperands>& jobs, const std::vector<Bytes>& expected,
                                    const std::vector<Places>& places) {
    Batch batch;
    std::vector<uint64_t> outputs;
    for (size_t i = 0; i < jobs.size(); ++i) {
      auto [gemm, d] = Check(jobs[i], places[i]);
      batch.jobs.emplace_back().gemm = std::move(gemm);
      outputs.push_back(d);
    }
    const uint64_t before = launcher().launches();
    Run(std::move(batch));
    EXPECT_EQ(launcher().launches(), before + 1);
    for (size_t i = 0; i < jobs.size(); ++i) {
      EXPECT_TRUE(Read(outputs[i]) == expected[i]) << "job " << i << " with " << jobs[i].rows.m << " rows";
    }
  }

  void ExpectBitsOfJobsAlone(const Kind& kind, const std::vector<Rows>& all_rows) {
    SCOPED_TRACE(kind.Name());
    MakeWeights(kind);
    std::vector<JobOperands> jobs;
    std::vector<Bytes> expected;
    for (const Rows& rows : all_rows) {
      jobs.push_back(MakeOperands(rows));
      expected.push_back(Alone(jobs.back()));
      EXPECT_EQ(WrongBetweenRows(jobs.back(), expected.back()), 0);
      const Bytes untouched(expected.back().size(), kPattern);
      EXPECT_EQ(expected.back() == untouched, rows.m == 0);
    }
    for (const Place b : {Place::kGpu, Place::kHost}) {
      for (const char* where : {"host", "GPU", "either"}) {
        SCOPED_TRACE(absl::StrCat(b == Place::kGpu ? "B in GPU" : "B in host", " memory, jobs in ", where));
        std::vector<Places> places;
        for (size_t i = 0; i < jobs.size(); ++i) {
          const auto place = [&](bool either) {
            return where[0] == 'h' || (where[0] == 'e' && either) ? Place::kHost : Place::kGpu;
          };
          places.push_back({place(i % 2 == 0), b, place(i / 2 % 2 == 0)});
        }
        ExpectOneLaunchWithTheseBits(jobs, expected, places);
      }
    }
  }

  Kind kind_;
  Regions b_{};
  Regions sfb_{};
};

const std::vector<Rows>& DenseRows() {
  static const auto* const rows = new std::vector<Rows>{{5}, {130}, {0}, {1, true}, {33, true}};
  return *rows;
}

// Rows that are nobody's lie between groups, and at ends.
const std::vector<Rows>& ContiguousRows() {
  static const auto* const rows = new std::vector<Rows>{
      {37, false, GroupEncoding::kOffsets, 0, {0, 3, 3, 20, 21, 21, 37}},
      {12, true, GroupEncoding::kRowIndex, 0, {0, 0, 0, -1, 2, 2, -1, -1, 4, 5, 5, -1}},
      {150, true, GroupEncoding::kOffsets, 0, {0, 0, 0, 0, 150, 150, 150}},
      {40, false, GroupEncoding::kAlignedEnds, 8, {5, 8, 8, 19, 24, 33}},
      {5, false, GroupEncoding::kOffsets, 0, {0, 0, 0, 0, 0, 0, 5}},
  };
  return *rows;
}

TEST_F(CudaMergingTest, DenseFp8JobsOnOneBGetTheBitsOfJobsAlone) {
  for (const DType d : {DType::kBf16, DType::kF32}) {
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::k1D2D, DType::kE4m3, d, 392, 656}, DenseRows());
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::k1D1D, DType::kE4m3, d, 392, 656}, DenseRows());
  }
}

TEST_F(CudaMergingTest, DenseBf16JobsOnOneBGetTheBitsOfJobsAlone) {
  for (const DType d : {DType::kBf16, DType::kF32}) {
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::k1D2D, DType::kBf16, d, 392, 656}, DenseRows());
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::kNone, DType::kBf16, d, 392, 656}, DenseRows());
  }
}

TEST_F(CudaMergingTest, DenseJobsWhoseRowsEndAnywhereGetTheBitsOfJobsAlone) {
  for (const DType d : {DType::kBf16, DType::kF32}) {
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::k1D2D, DType::kE4m3, d, 331, 333}, DenseRows());
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::k1D2D, DType::kBf16, d, 331, 333}, DenseRows());
    ExpectBitsOfJobsAlone({Op::kDense, Scaling::kNone, DType::kBf16, d, 331, 333}, DenseRows());
  }
}

TEST_F(CudaMergingTest, ContiguousJobsOnOneExpertStackGetTheBitsOfJobsAlone) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{392, 656}, {331, 333}}) {
    ExpectBitsOfJobsAlone({Op::kMGroupedContiguous, Scaling::k1D2D, DType::kE4m3, DType::kBf16, n, k},
                          ContiguousRows());
    ExpectBitsOfJobsAlone({Op::kMGroupedContiguous, Scaling::k1D2D, DType::kBf16, DType::kBf16, n, k},
                          ContiguousRows());
  }
}

TEST_F(CudaMergingTest, ContiguousBf16JobsOnOneExpertStackGetTheBitsOfJobsAlone) {
  for (const DType d : {DType::kBf16, DType::kF32}) {
    ExpectBitsOfJobsAlone({Op::kMGroupedContiguous, Scaling::kNone, DType::kBf16, d, 392, 656}, ContiguousRows());
    ExpectBitsOfJobsAlone({Op::kMGroupedContiguous, Scaling::kNone, DType::kBf16, d, 331, 333}, ContiguousRows());
  }
}

}  // namespace
}  // namespace gemmd
