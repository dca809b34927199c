// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/quantize.h"

#include "proto/element_type.h"

#include "gtest/gtest.h"

#include <cmath>
#include <random>
#include <vector>

namespace gemmd {
namespace {

struct Quantized {
  std::vector<uint8_t> q;
  float sf = 0;
};

// One row of at most 128 elements.
Quantized QuantizeRow(InstructionSet set, std::vector<float> x) {
  const auto k = static_cast<int64_t>(x.size());
  Quantized result;
  result.q.resize(x.size());
  QuantizeBlockRow(set,
                   {{reinterpret_cast<std::byte*>(x.data()), DType::kF32, 1, k, k, 1},
                    {reinterpret_cast<std::byte*>(result.q.data()), DType::kE4m3, 1, k, k, 1},
                    {reinterpret_cast<std::byte*>(&result.sf), DType::kF32, 1, 1, 1, 1},
                    1},
                   0);
  return result;
}

TEST(QuantizeTest, EveryInstructionSetGivesTheBitsOfFloatToE4m3) {
  std::mt19937 random(4);
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> x(128);
    // Magnitudes over the whole range of e4m3, so that normal, subnormal and zero results all occur.
    for (float& value : x) value = std::ldexp(static_cast<float>(random()) - 0x1p31f, -static_cast<int>(random() % 24));
    for (int set = 0; set <= static_cast<int>(BestInstructionSet()); ++set) {
      const Quantized got = QuantizeRow(static_cast<InstructionSet>(set), x);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(got.q[i], FloatToE4m3(x[i] / got.sf)) << x[i];
    }
  }
}

TEST(QuantizeTest, TheLargestElementBecomes448) {
  const Quantized got = QuantizeRow(BestInstructionSet(), {0.5f, -3.5f, 1.0f});
  EXPECT_EQ(got.sf, 3.5f / 448.0f);
  EXPECT_EQ(E4m3ToFloat(got.q[1]), -448.0f);
}

TEST(QuantizeTest, ABlockOfZerosHasScaleOne) {
  const Quantized got = QuantizeRow(BestInstructionSet(), {0.0f, -0.0f});
  EXPECT_EQ(got.sf, 1.0f);
  EXPECT_EQ(got.q, (std::vector<uint8_t>{0x00, 0x80}));
}

TEST(QuantizeTest, ABlockBelowAllScalesBecomesZeros) {
  const Quantized got = QuantizeRow(BestInstructionSet(), {0x1p-149f, 0.0f});
  EXPECT_EQ(got.sf, 1.0f);
  EXPECT_EQ(got.q, (std::vector<uint8_t>{0, 0}));
}

TEST(QuantizeTest, NanStaysNanAndDoesNotCountForTheScale) {
  const Quantized got = QuantizeRow(BestInstructionSet(), {NAN, 448.0f});
  EXPECT_EQ(got.sf, 1.0f);
  EXPECT_TRUE(std::isnan(E4m3ToFloat(got.q[0])));
  EXPECT_EQ(E4m3ToFloat(got.q[1]), 448.0f);
}

TEST(QuantizeTest, AnInfinityMakesItsBlockNan) {
  const Quantized got = QuantizeRow(BestInstructionSet(), {INFINITY, 2.0f});
  EXPECT_TRUE(std::isnan(E4m3ToFloat(got.q[0]) * got.sf));
  EXPECT_TRUE(std::isnan(E4m3ToFloat(got.q[1]) * got.sf));
}

}  // namespace
}  // namespace gemmd
