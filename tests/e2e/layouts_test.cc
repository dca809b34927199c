// SPDX-License-Identifier: Apache-2.0
// Layouts of operands that Problem does not make, through a real daemon: rows with room between them, scale factors in
// M-major order, and a result in a resident tensor.
#include "client/client.h"
#include "client/random_data.h"
#include "client/reference.h"
#include "tests/e2e/process.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

constexpr int64_t kM = 37, kN = 200, kK = 400;
constexpr int64_t kBlocks = (kK + 127) / 128, kBlockRows = (kN + 127) / 128;
constexpr uint64_t kRegionBytes = 1 << 20;
// Where each operand begins in the region.
constexpr uint64_t kAAt = 0, kBAt = 1 << 17, kSfaAt = 1 << 18, kSfbAt = 3 << 17, kDAt = 1 << 19;

class LayoutsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto daemon = testing::Daemon::Start();
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  static void TearDownTestSuite() {
    client_.reset();
    daemon_.reset();
  }

  void SetUp() override {
    auto region = client_->CreateHostRegion(kRegionBytes);
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
    // What no product may read or write would show: NaN in every type.
    std::fill_n(region_.data(), kRegionBytes, std::byte{0xff});
    FillRandomQuantized(1, kM, kK, QuantizeBlock::k1x128, absl::MakeSpan(a_), absl::MakeSpan(sfa_));
    FillRandomQuantized(2, kN, kK, QuantizeBlock::k128x128, absl::MakeSpan(b_), absl::MakeSpan(sfb_));
  }

  // Puts rows of `columns` elements `pitch` elements apart.
  template <typename T>
  TensorView PutRows(uint64_t at, DType dtype, const std::vector<T>& values, int64_t columns, int64_t pitch) {
    const auto rows = static_cast<int64_t>(values.size()) / columns;
    const absl::Span<T> target = region_.Elements<T>(at, rows * pitch);
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(values.begin() + row * columns, columns, target.begin() + row * pitch);
    }
    return region_.View(at, dtype, {rows, columns}, {pitch, 1});
  }

  // The product with all operands contiguous, to be changed.
  DenseCall Contiguous(DType d_dtype) {
    return {.a = PutRows(kAAt, DType::kE4m3, a_, kK, kK),
            .sfa = PutRows(kSfaAt, DType::kF32, sfa_, kBlocks, kBlocks),
            .b = PutRows(kBAt, DType::kE4m3, b_, kK, kK),
            .sfb = PutRows(kSfbAt, DType::kF32, sfb_, kBlocks, kBlocks),
            .d = region_.View(kDAt, d_dtype, {kM, kN})};
  }

  void ExpectRight(const reference::Matrix& d) {
    const reference::Scaled a{reference::RowMajor(a_.data(), DType::kE4m3, kM, kK),
                              reference::RowMajor(sfa_.data(), DType::kF32, kM, kBlocks), 1};
    const reference::Scaled b{reference::RowMajor(b_.data(), DType::kE4m3, kN, kK),
                              reference::RowMajor(sfb_.data(), DType::kF32, kBlockRows, kBlocks), 128};
    const std::vector<reference::Product> products = {{a, b, {}, d}};
    const absl::Status status =
        reference::CheckLimits(reference::CheckProducts(products), reference::LimitsFor(d.dtype));
    EXPECT_TRUE(status.ok()) << status;
  }

  std::vector<uint8_t> a_ = std::vector<uint8_t>(kM * kK), b_ = std::vector<uint8_t>(kN * kK);
  std::vector<float> sfa_ = std::vector<float>(kM * kBlocks), sfb_ = std::vector<float>(kBlockRows * kBlocks);
  HostRegion region_;
  static inline std::unique_ptr<testing::Daemon> daemon_;
  static inline std::unique_ptr<Client> client_;
};

TEST_F(LayoutsTest, RowsMayLieApart) {
  constexpr int64_t kDPitch = kN + 24;
  DenseCall call = Contiguous(DType::kBf16);
  std::fill_n(region_.data(), kDAt, std::byte{0xff});
  call.a = PutRows(kAAt, DType::kE4m3, a_, kK, kK + 48);
  call.b = PutRows(kBAt, DType::kE4m3, b_, kK, kK + 112);
  call.sfa = PutRows(kSfaAt, DType::kF32, sfa_, kBlocks, kBlocks + 3);
  call.sfb = PutRows(kSfbAt, DType::kF32, sfb_, kBlocks, kBlocks + 1);
  call.d = region_.View(kDAt, DType::kBf16, {kM, kN}, {kDPitch, 1});
  const auto response = client_->Dense(call);
  ASSERT_TRUE(response.ok()) << response.status();
  const absl::Span<uint16_t> d = region_.Elements<uint16_t>(kDAt, kM * kDPitch);
  ExpectRight({d.data(), DType::kBf16, kM, kN, kDPitch});
  for (int64_t row = 0; row < kM; ++row) {
    for (int64_t column = kN; column < kDPitch; ++column) {
      ASSERT_EQ(d[static_cast<size_t>(row * kDPitch + column)], 0xffff) << "written between rows, at " << row;
    }
  }
}

TEST_F(LayoutsTest, ScaleFactorsOfAMayBeMMajor) {
  constexpr int64_t kPitch = 40;  // A multiple of 4, at least M.
  DenseCall call = Contiguous(DType::kF32);
  const absl::Span<float> sfa = region_.Elements<float>(kSfaAt, kPitch * kBlocks);
  std::memset(sfa.data(), 0xff, sfa.size() * sizeof(float));
  for (int64_t row = 0; row < kM; ++row) {
    for (int64_t block = 0; block < kBlocks; ++block) {
      sfa[static_cast<size_t>(block * kPitch + row)] = sfa_[static_cast<size_t>(row * kBlocks + block)];
    }
  }
  call.sfa = region_.View(kSfaAt, DType::kF32, {kM, kBlocks}, {1, kPitch});
  const auto response = client_->Dense(call);
  ASSERT_TRUE(response.ok()) << response.status();
  ExpectRight(reference::RowMajor(region_.Elements<float>(kDAt, kM * kN).data(), DType::kF32, kM, kN));
}

TEST_F(LayoutsTest, AResultMayStayInAResidentTensor) {
  const auto tensor = client_->CreateTensor({.dtype = DType::kF32, .shape = {kM, kN}});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  DenseCall call = Contiguous(DType::kF32);
  call.d = Resident(tensor->id());
  const auto response = client_->Dense(call);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(response->d().empty());
  const auto bytes = client_->ReadTensor(tensor->id());
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  ASSERT_EQ(bytes->size(), static_cast<size_t>(kM * kN) * sizeof(float));
  ExpectRight(reference::RowMajor(bytes->data(), DType::kF32, kM, kN));
  EXPECT_TRUE(client_->DeleteTensor(tensor->id()).ok());
}

TEST_F(LayoutsTest, AResidentResultMayBeAccumulated) {
  const auto tensor = client_->CreateTensor({.dtype = DType::kF32, .shape = {kM, kN}});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  DenseCall call = Contiguous(DType::kF32);
  call.d = Resident(tensor->id());
  call.accumulate = true;
  ASSERT_TRUE(client_->Dense(call).ok());
  const auto once = client_->ReadTensor(tensor->id());
  ASSERT_TRUE(client_->Dense(call).ok());
  const auto twice = client_->ReadTensor(tensor->id());
  ASSERT_TRUE(once.ok() && twice.ok()) << once.status() << twice.status();
  ExpectRight(reference::RowMajor(once->data(), DType::kF32, kM, kN));  // To the zeros of a fresh tensor.
  std::vector<float> first(kM * kN), second(kM * kN);
  std::memcpy(first.data(), once->data(), once->size());
  std::memcpy(second.data(), twice->data(), twice->size());
  for (size_t i = 0; i < first.size(); ++i) ASSERT_FLOAT_EQ(second[i], 2 * first[i]) << i;
  EXPECT_TRUE(client_->DeleteTensor(tensor->id()).ok());
}

}  // namespace
}  // namespace gemmd
