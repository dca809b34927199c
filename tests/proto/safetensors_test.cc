// SPDX-License-Identifier: Apache-2.0
#include "proto/safetensors.h"

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

TEST(SafetensorsTest, MetadataIsSkipped) {
  const auto entries = ParseSafetensors(File(R"({"__metadata__":{"format":"pt"}})", ""));
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_TRUE(entries->empty());
}

TEST(SafetensorsTest, UnknownTypeIsListedButNotFound) {
  const auto entries = ParseSafetensors(File(R"({"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", "12345678"));
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_EQ(FindSafetensors(*entries, "x").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FindSafetensors(*entries, "y").status().code(), absl::StatusCode::kNotFound);
}

TEST(SafetensorsTest, OffsetsCountFromTheStartOfTheFile) {
  const std::string header = R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})";
  const auto entries = ParseSafetensorsHeader(header, 8 + header.size() + 3);
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_EQ(entries->at(0).begin, 8 + header.size() + 1);
  EXPECT_EQ(entries->at(0).end, 8 + header.size() + 3);
  EXPECT_FALSE(ParseSafetensorsHeader(header, 8 + header.size() + 2).ok());
  EXPECT_FALSE(ParseSafetensorsHeader(header, 7).ok());
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string file = File(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678");
  ASSERT_TRUE(ParseSafetensors(file).ok());
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

TEST(SafetensorsTest, HugeHeaderLengthIsRefused) {
  EXPECT_FALSE(ParseSafetensors(std::string(8, '\xff') + "{}").ok());
  EXPECT_EQ(SafetensorsHeaderBytes(File("{}", ""), 10).value(), 2u);
  EXPECT_EQ(SafetensorsHeaderBytes(File("{}", ""), 10, 1).status().message(),
            "safetensors: header: expected at most 1 bytes, got 2");
}

}  // namespace
}  // namespace gemmd
