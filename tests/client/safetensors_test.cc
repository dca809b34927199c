// SPDX-License-Identifier: Apache-2.0
#include "client/safetensors.h"

#include "absl/strings/str_cat.h"
#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

std::string File(const std::string& header, const std::string& data) {
  std::string length;
  for (size_t i = 0; i < 8; ++i) length.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return absl::StrCat(length, header, data);
}

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

TEST(SafetensorsTest, MetadataIsSkipped) {
  const auto entries = ParseSafetensors(File(R"({"__metadata__":{"format":"pt"}})", ""));
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_TRUE(entries->empty());
}

TEST(SafetensorsTest, UnknownTypeIsListedButNotRead) {
  const std::string file = File(R"({"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", "12345678");
  ASSERT_TRUE(ParseSafetensors(file).ok());
  EXPECT_EQ(ReadSafetensors(file, "x").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string file = FormatSafetensors({{"w", {DType::kF32, {2}, "12345678"}}});
  for (size_t size = 0; size < file.size(); ++size) EXPECT_FALSE(ParseSafetensors(file.substr(0, size)).ok()) << size;
}

TEST(SafetensorsTest, CorruptEntriesAreRefused) {
  for (const char* entry :
       {R"({"dtype":"U8","shape":[4],"data_offsets":[0,5]})", R"({"dtype":"U8","shape":[5],"data_offsets":[0,5]})",
        R"({"dtype":"U8","shape":[4],"data_offsets":[4,0]})", R"({"dtype":"U8","shape":[-4],"data_offsets":[0,4]})",
        R"({"dtype":"U8","shape":4,"data_offsets":[0,4]})", R"({"dtype":8,"shape":[4],"data_offsets":[0,4]})",
        R"({"dtype":"U8","shape":[4],"data_offsets":[0]})", R"({"dtype":"U8","shape":[4.5],"data_offsets":[0,4]})",
        R"({"dtype":"U8","shape":[4]})", R"([])", R"({"dtype":"U8","shape":[[[[[[4]]]]]],"data_offsets":[0,4]})",
        R"({"dtype":"U8","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]})"}) {
    const auto entries = ParseSafetensors(File(absl::StrCat("{\"x\":", entry, "}"), "1234"));
    EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument) << entry;
  }
}

TEST(SafetensorsTest, HeaderThatIsNoJsonObjectIsRefused) {
  for (const char* header : {"", "[]", "{", "1", "nonsense"}) EXPECT_FALSE(ParseSafetensors(File(header, "")).ok());
}

TEST(SafetensorsTest, HugeHeaderLengthIsRefused) { EXPECT_FALSE(ParseSafetensors(std::string(8, '\xff') + "{}").ok()); }

}  // namespace
}  // namespace gemmd
