// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/dequantize.h"

#include "proto/element_type.h"

#include "gtest/gtest.h"

#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace gemmd {
namespace {

std::vector<InstructionSet> Sets() {
  std::vector<InstructionSet> sets = {InstructionSet::kPortable};
  if (BestInstructionSet() >= InstructionSet::kAvx2) sets.push_back(InstructionSet::kAvx2);
  if (BestInstructionSet() >= InstructionSet::kAvx512) sets.push_back(InstructionSet::kAvx512);
  return sets;
}

TEST(DequantizeTest, EveryE4m3IsExactInEveryInstructionSet) {
  std::vector<uint8_t> in(256);
  std::iota(in.begin(), in.end(), uint8_t{0});
  for (const InstructionSet set : Sets()) {
    for (const float sf : {1.0f, 0.3f, -7e-5f, 0x1p-140f, 0x1.8p125f, 0.0f}) {
      std::vector<float> out(256);
      DequantizeE4m3(set, in.data(), 256, sf, out.data());
      for (size_t i = 0; i < 256; ++i) {
        const float expected = E4m3ToFloat(in[i]) * sf;
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(out[i])) << i;
        } else {
          EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected)) << i << " sf " << sf;
        }
      }
    }
  }
}

TEST(DequantizeTest, NothingBeyondTheCountIsWritten) {
  const std::vector<uint8_t> in(100, 0x38);
  for (const InstructionSet set : Sets()) {
    for (int64_t count = 0; count <= 100; ++count) {
      std::vector<float> out(101, -5.0f);
      DequantizeE4m3(set, in.data(), count, 2.0f, out.data());
      for (int64_t i = 0; i <= 100; ++i) ASSERT_EQ(out[static_cast<size_t>(i)], i < count ? 2.0f : -5.0f);
    }
  }
}

TEST(DequantizeTest, EveryBf16IsWidenedExactly) {
  std::vector<uint16_t> in(65536);
  std::iota(in.begin(), in.end(), uint16_t{0});
  for (const InstructionSet set : Sets()) {
    std::vector<float> out(65536);
    WidenBf16(set, in.data(), 65536, out.data());
    for (size_t i = 0; i < 65536; ++i) ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), static_cast<uint32_t>(i) << 16);
  }
}

TEST(DequantizeTest, NarrowingRoundsLikeFloatToBf16) {
  std::mt19937 random(3);
  std::vector<float> in(10'007);
  for (float& value : in) value = std::bit_cast<float>(static_cast<uint32_t>(random()));
  in[0] = INFINITY;
  in[1] = NAN;
  in[2] = std::bit_cast<float>(0x3f808000u);  // A tie.
  for (const InstructionSet set : Sets()) {
    std::vector<uint16_t> out(in.size());
    NarrowToBf16(set, in.data(), static_cast<int64_t>(in.size()), out.data());
    for (size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], FloatToBf16(in[i])) << in[i];
  }
}

}  // namespace
}  // namespace gemmd
