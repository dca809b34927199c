// SPDX-License-Identifier: Apache-2.0
#include "client/reference.h"

#include "client/random_data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace gemmd::reference {
namespace {

// A random operand that owns its memory.
struct Random {
  Random(uint64_t seed, int64_t rows, int64_t columns, QuantizeBlock block) {
    const int64_t block_rows = block == QuantizeBlock::k128x128 ? 128 : 1;
    const int64_t sf_rows = (rows + block_rows - 1) / block_rows;
    const int64_t sf_columns = (columns + 127) / 128;
    values.resize(static_cast<size_t>(rows * columns));
    sf.resize(static_cast<size_t>(sf_rows * sf_columns));
    FillRandomQuantized(seed, rows, columns, block, absl::MakeSpan(values), absl::MakeSpan(sf));
    operand = {RowMajor(values.data(), DType::kE4m3, rows, columns),
               RowMajor(sf.data(), DType::kF32, sf_rows, sf_columns), block_rows};
  }
  std::vector<uint8_t> values;
  std::vector<float> sf;
  Scaled operand;
};

TEST(ReferenceTest, DequantizesByRowAndColumnBlock) {
  const uint8_t one = FloatToE4m3(1.0f);
  const std::vector<uint8_t> values(static_cast<size_t>(130 * 200), one);
  const std::vector<float> sf = {1, 2, 3, 4};
  const Scaled operand{RowMajor(values.data(), DType::kE4m3, 130, 200), RowMajor(sf.data(), DType::kF32, 2, 2), 128};
  const std::vector<double> result = Dequantize(operand, {0, 129});
  EXPECT_EQ(result[127], 1);
  EXPECT_EQ(result[128], 2);
  EXPECT_EQ(result[200], 3);
  EXPECT_EQ(result[399], 4);
}

TEST(ReferenceTest, MMajorScalesGiveTheSameProduct) {
  const Random a(1, 6, 256, QuantizeBlock::k1x128);
  const Random b(2, 140, 256, QuantizeBlock::k128x128);
  std::vector<float> transposed(2 * 8);
  for (size_t row = 0; row < 6; ++row) {
    for (size_t column = 0; column < 2; ++column) transposed[column * 8 + row] = a.sf[row * 2 + column];
  }
  Scaled a_columns = a.operand;
  a_columns.sf = ColumnMajor(transposed.data(), DType::kF32, 6, 2, 8);
  EXPECT_EQ(Multiply({a.operand, b.operand, {}, {}}), Multiply({a_columns, b.operand, {}, {}}));
}

TEST(ReferenceTest, MultipliesAndAdds) {
  const std::vector<float> a = {1, 2, 3, 4};
  const std::vector<float> b = {5, 6, 7, 8};
  const std::vector<float> c = {100, 200, 300, 400};
  const auto matrix = [](const std::vector<float>& data) { return RowMajor(data.data(), DType::kF32, 2, 2); };
  const Product product{{matrix(a), {}, 1}, {matrix(b), {}, 1}, matrix(c), {}};
  EXPECT_EQ(Multiply(product), (std::vector<double>{117, 223, 339, 453}));
}

TEST(ReferenceTest, SampleAgreesWithTheWhole) {
  const Random a(1, 50, 128, QuantizeBlock::k1x128);
  const Random b(2, 60, 128, QuantizeBlock::k1x128);
  const Product product{a.operand, b.operand, {}, {}};
  const std::vector<double> whole = Multiply(product);
  const std::vector<double> sampled = Multiply(product, {{3, 49}, {0, 7, 59}});
  EXPECT_EQ(sampled[0], whole[3 * 60]);
  EXPECT_EQ(sampled[5], whole[49 * 60 + 59]);
}

TEST(ReferenceTest, SampleIsBoundedAndHasTheCorners) {
  const Product product{{RowMajor(nullptr, DType::kE4m3, 4096, 7168), {}, 1},
                        {RowMajor(nullptr, DType::kE4m3, 2112, 7168), {}, 1},
                        {},
                        {}};
  const Sample sample = ChooseSample(product, kDefaultMaxProducts, 7);
  EXPECT_LE(static_cast<double>(sample.rows.size() * sample.columns.size()) * 7168, 1.1 * kDefaultMaxProducts);
  EXPECT_EQ(sample.rows.front(), 0);
  EXPECT_EQ(sample.columns.back(), 2111);
}

TEST(ReferenceTest, ContiguousGroupsSkipPaddingRows) {
  const Random a(1, 6, 128, QuantizeBlock::k1x128);
  const Random b(2, 2 * 128, 128, QuantizeBlock::k128x128);
  const std::vector<int64_t> row_group = RowGroupsFromAlignedEnds(std::vector<int64_t>{3, 6}, 4, 6);
  EXPECT_EQ(row_group, (std::vector<int64_t>{0, 0, 0, -1, 1, 1}));
  const std::vector<Product> products = ContiguousProducts(a.operand, b.operand, {}, 2, row_group);
  ASSERT_EQ(products.size(), 2u);
  EXPECT_EQ(products[1].a.values.rows, 2);
  EXPECT_EQ(Multiply(products[1])[0], Multiply({a.operand, b.operand, {}, {}})[4 * 256 + 128]);
}

TEST(ReferenceTest, OffsetsMayLeaveGroupsEmpty) {
  EXPECT_EQ(RowGroupsFromOffsets(std::vector<int64_t>{0, 0, 2, 2, 3}, 3), (std::vector<int64_t>{1, 1, 3}));
}

TEST(ReferenceTest, KGroupedTakesEachStretchWithItsScales) {
  const std::vector<uint8_t> a(2 * (128 + 256), FloatToE4m3(1.0f));
  const std::vector<float> sf = {1, 10, 100, 1, 10, 100};  // [2, 1 + 2]
  const Matrix scales = RowMajor(sf.data(), DType::kF32, 2, 3);
  const std::vector<Product> products = KGroupedProducts(
      {a.data(), a.data(), DType::kE4m3, scales, scales, {}, {}, 2, 2}, std::vector<int64_t>{128, 256});
  ASSERT_EQ(products.size(), 2u);
  EXPECT_EQ(Multiply(products[0])[0], 128);
  EXPECT_EQ(Multiply(products[1])[3], 128 * 100 + 128 * 10000);
}

TEST(ReferenceTest, ErrorOfAnEqualResultIsZero) {
  ErrorSums sums;
  sums.Add({1, -2}, {1, -2});
  EXPECT_EQ(sums.Get().relative_frobenius, 0);
  EXPECT_TRUE(CheckLimits(sums.Get(), LimitsFor(DType::kF32)).ok());
}

TEST(ReferenceTest, MetricsAreTheOnesOfTheirNames) {
  ErrorSums sums;
  sums.Add({3, 4}, {3, 5});
  const Error error = sums.Get();
  EXPECT_DOUBLE_EQ(error.relative_frobenius, 1.0 / 5);
  EXPECT_DOUBLE_EQ(error.max_over_rms, 1 / std::sqrt(12.5));
  EXPECT_DOUBLE_EQ(error.difference, 1 - 2 * 29.0 / (25 + 34));
}

TEST(ReferenceTest, NonFiniteResultIsRefused) {
  ErrorSums sums;
  sums.Add({1}, {std::numeric_limits<double>::quiet_NaN()});
  EXPECT_FALSE(CheckLimits(sums.Get(), LimitsFor(DType::kBf16)).ok());
}

TEST(ReferenceTest, OneWrongElementIsRefused) {
  std::vector<double> expected(10000, 1.0);
  std::vector<double> actual = expected;
  actual[77] = 1.05;
  ErrorSums sums;
  sums.Add(expected, actual);
  EXPECT_FALSE(CheckLimits(sums.Get(), LimitsFor(DType::kBf16)).ok());
}

TEST(ReferenceTest, QuantizeScalesTheLargestTo448) {
  std::vector<float> x(256, 0.0f);
  x[5] = -8.96f;
  const Quantized result = Quantize(RowMajor(x.data(), DType::kF32, 1, 256), QuantizeBlock::k1x128);
  EXPECT_FLOAT_EQ(result.sf[0], 0.02f);
  EXPECT_EQ(result.sf[1], 1.0f);
  EXPECT_EQ(E4m3ToFloat(result.q[5]), -448.0f);
}

TEST(ReferenceTest, QuantizedCheckFindsAWrongElement) {
  std::vector<float> x(300 * 256);
  FillRandom(3, 300, 256, absl::MakeSpan(x));
  const Matrix matrix = RowMajor(x.data(), DType::kF32, 300, 256);
  Quantized result = Quantize(matrix, QuantizeBlock::k128x128);
  const auto check = [&] {
    return CheckQuantized(matrix, QuantizeBlock::k128x128, RowMajor(result.q.data(), DType::kE4m3, 300, 256),
                          RowMajor(result.sf.data(), DType::kF32, 3, 2));
  };
  EXPECT_TRUE(check().ok());
  result.q[1000] = static_cast<uint8_t>(result.q[1000] ^ 0x80);
  EXPECT_FALSE(check().ok());
}

TEST(RandomDataTest, SameSeedGivesTheSameData) {
  const Random first(9, 200, 300, QuantizeBlock::k128x128);
  const Random second(9, 200, 300, QuantizeBlock::k128x128);
  EXPECT_EQ(first.values, second.values);
  EXPECT_EQ(first.sf, second.sf);
}

TEST(RandomDataTest, QuantizedDataIsQuantizationOfTheRandomValues) {
  std::vector<float> x(130 * 200);
  FillRandom(4, 130, 200, absl::MakeSpan(x));
  for (const QuantizeBlock block : {QuantizeBlock::k1x128, QuantizeBlock::k128x128}) {
    const Random random(4, 130, 200, block);
    EXPECT_TRUE(
        CheckQuantized(RowMajor(x.data(), DType::kF32, 130, 200), block, random.operand.values, random.operand.sf)
            .ok());
  }
}

TEST(RandomDataTest, RoundingAloneStaysInsideTheLimits) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const int64_t k = seed % 2 == 0 ? 128 : 1024;
    const Random a(seed, 200, k, QuantizeBlock::k1x128);
    const Random b(seed + 100, 400, k, QuantizeBlock::k128x128);
    const std::vector<double> exact = Multiply({a.operand, b.operand, {}, {}});
    std::vector<double> rounded;
    for (const double value : exact) rounded.push_back(Bf16ToFloat(FloatToBf16(static_cast<float>(value))));
    ErrorSums sums;
    sums.Add(exact, rounded);
    EXPECT_TRUE(CheckLimits(sums.Get(), LimitsFor(DType::kBf16)).ok()) << seed << ": " << sums.Get().max_over_rms;
  }
}

TEST(RandomDataTest, MagnitudesDifferBetweenBlocks) {
  const Random random(5, 1, 128 * 16, QuantizeBlock::k1x128);
  const auto [least, most] = std::minmax_element(random.sf.begin(), random.sf.end());
  EXPECT_GT(*most, 3 * *least);
}

}  // namespace
}  // namespace gemmd::reference
