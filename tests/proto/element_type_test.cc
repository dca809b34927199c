// SPDX-License-Identifier: Apache-2.0
#include "proto/element_type.h"

#include "gtest/gtest.h"

#include <bit>
#include <cmath>
#include <random>

namespace gemmd {
namespace {

// The nearest of all 256 values, ties to the even bit pattern.
uint8_t NearestE4m3(float value) {
  if (std::isnan(value)) return std::signbit(value) ? 0xff : 0x7f;
  const double magnitude = std::fmin(std::fabs(static_cast<double>(value)), 448.0);
  int best = 0;
  for (int bits = 1; bits <= 0x7e; ++bits) {
    const double distance = std::fabs(static_cast<double>(E4m3ToFloat(static_cast<uint8_t>(bits))) - magnitude);
    const double least = std::fabs(static_cast<double>(E4m3ToFloat(static_cast<uint8_t>(best))) - magnitude);
    if (distance < least || (distance == least && bits % 2 == 0)) best = bits;
  }
  return static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

TEST(ElementTypeTest, E4m3HasTheValuesOfItsDefinition) {
  for (int bits = 0; bits < 0x7f; ++bits) {
    const int exponent = bits >> 3;
    const int mantissa = bits & 7;
    const double expected =
        exponent == 0 ? std::ldexp(mantissa / 8.0, -6) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    EXPECT_EQ(static_cast<double>(E4m3ToFloat(static_cast<uint8_t>(bits))), expected);
    EXPECT_EQ(static_cast<double>(E4m3ToFloat(static_cast<uint8_t>(bits | 0x80))), -expected);
  }
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0x7f)));
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0xff)));
}

TEST(ElementTypeTest, EveryE4m3SurvivesTheRoundTrip) {
  for (int bits = 0; bits < 256; ++bits) {
    EXPECT_EQ(FloatToE4m3(E4m3ToFloat(static_cast<uint8_t>(bits))) & 0x7f, bits & 0x7f);
    if ((bits & 0x7f) != 0x7f) {
      EXPECT_EQ(FloatToE4m3(E4m3ToFloat(static_cast<uint8_t>(bits))), bits);
    }
  }
}

TEST(ElementTypeTest, TiesAndTheirNeighboursRoundToNearestEvenE4m3) {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = E4m3ToFloat(static_cast<uint8_t>(bits));
    const float tie = (low + E4m3ToFloat(static_cast<uint8_t>(bits + 1))) / 2;
    for (const float value : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)}) {
      EXPECT_EQ(FloatToE4m3(value), NearestE4m3(value)) << value;
      EXPECT_EQ(FloatToE4m3(-value), NearestE4m3(-value)) << value;
    }
  }
}

TEST(ElementTypeTest, RandomFloatsRoundToTheNearestE4m3) {
  std::mt19937 random(5);
  for (int i = 0; i < 20'000; ++i) {
    const float any = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const float near = std::ldexp(static_cast<float>(random()) - 0x1p31f, -22 - static_cast<int>(random() % 24));
    EXPECT_EQ(FloatToE4m3(any), NearestE4m3(any)) << any;
    EXPECT_EQ(FloatToE4m3(near), NearestE4m3(near)) << near;
  }
}

TEST(ElementTypeTest, E4m3Saturates) {
  EXPECT_EQ(FloatToE4m3(464.0f), 0x7e);
  EXPECT_EQ(FloatToE4m3(1e30f), 0x7e);
  EXPECT_EQ(FloatToE4m3(-INFINITY), 0xfe);
}

TEST(ElementTypeTest, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(value))));
    } else {
      EXPECT_EQ(FloatToBf16(value), bits);
    }
  }
}

TEST(ElementTypeTest, TiesAndTheirNeighboursRoundToNearestEvenBf16) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const uint32_t tie = (bits << 16) | 0x8000;
    EXPECT_EQ(FloatToBf16(std::bit_cast<float>(tie)), bits + (bits & 1));
    EXPECT_EQ(FloatToBf16(std::bit_cast<float>(tie - 1)), bits);
    EXPECT_EQ(FloatToBf16(std::bit_cast<float>(tie + 1)), bits + 1);
  }
}

TEST(ElementTypeTest, Bf16OverflowsToInfinity) {
  EXPECT_EQ(FloatToBf16(3.4e38f), 0x7f80);
  EXPECT_EQ(FloatToBf16(-INFINITY), 0xff80);
}

}  // namespace
}  // namespace gemmd
