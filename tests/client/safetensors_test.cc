// SPDX-License-Identifier: Apache-2.0
#include "client/safetensors.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace gemmd {
namespace {

TEST(SafetensorsTest, RoundTripsSeveralTensors) {
  const StoredArray weights{DType::kE4m3, {2, 3}, "abcdef"};
  const StoredArray scales{DType::kF32, {1}, "wxyz"};
  const std::string file = FormatSafetensors({{"w", weights}, {"s", scales}});
  const auto again = ReadSafetensors(file, "s");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->dtype, DType::kF32);
  EXPECT_EQ(again->bytes, "wxyz");
  EXPECT_EQ(ReadSafetensors(file, "w")->shape, (std::vector<int64_t>{2, 3}));
}

TEST(SafetensorsTest, OneOfSeveralNeedsAName) {
  const StoredArray byte{DType::kU8, {1}, "a"};
  EXPECT_EQ(ReadSafetensors(FormatSafetensors({{"a", byte}, {"b", byte}}), "").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(ReadSafetensors(FormatSafetensors({{"a", byte}}), "").ok());
}

TEST(SafetensorsTest, UnknownNameIsNotFound) {
  EXPECT_EQ(ReadSafetensors(FormatSafetensors({}), "x").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gemmd
