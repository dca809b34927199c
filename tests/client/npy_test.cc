// SPDX-License-Identifier: Apache-2.0
#include "client/npy.h"

#include "absl/strings/str_cat.h"
#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

std::string File(const std::string& header, const std::string& data) {
  const char length[] = {static_cast<char>(header.size()), static_cast<char>(header.size() >> 8)};
  return absl::StrCat("\x93NUMPY", std::string("\x01\x00", 2), std::string(length, 2), header, data);
}

constexpr char kHeader[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n";

TEST(NpyTest, ReadsAnArray) {
  const auto array = ParseNpy(File(kHeader, "12345678"));
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->dtype, DType::kF32);
  EXPECT_EQ(array->shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(array->bytes, "12345678");
}

TEST(NpyTest, RoundTripsEveryType) {
  for (const DType dtype : {DType::kE4m3, DType::kBf16, DType::kF32, DType::kI32, DType::kI64, DType::kU8}) {
    const StoredArray array{dtype, {3}, std::string(static_cast<size_t>(3 * ByteSize(dtype)), 'x')};
    const std::string file = FormatNpy(array);
    EXPECT_EQ((file.size() - array.bytes.size()) % 64, 0u);
    const auto again = ParseNpy(file, dtype);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->dtype, dtype);
    EXPECT_EQ(again->bytes, array.bytes);
  }
}

TEST(NpyTest, SixteenBitsNeedADType) {
  const std::string file = FormatNpy({DType::kBf16, {1}, "ab"});
  EXPECT_FALSE(ParseNpy(file).ok());
  EXPECT_TRUE(ParseNpy(file, DType::kBf16).ok());
}

TEST(NpyTest, FortranOrderIsRefused) {
  EXPECT_FALSE(ParseNpy(File("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", "12345678")).ok());
}

TEST(NpyTest, WrongDataSizeIsRefused) {
  EXPECT_FALSE(ParseNpy(File(kHeader, "1234567")).ok());
  EXPECT_FALSE(ParseNpy(File(kHeader, "123456789")).ok());
}

TEST(NpyTest, EveryTruncationIsRefused) {
  const std::string file = File(kHeader, "12345678");
  for (size_t size = 0; size < file.size(); ++size) EXPECT_FALSE(ParseNpy(file.substr(0, size)).ok()) << size;
}

TEST(NpyTest, CorruptHeadersAreRefused) {
  for (const char* header :
       {"", "{", "{}", "{'descr': '<f4'}", "{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': No, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 2}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", "{'x': '<f4'}"}) {
    const auto array = ParseNpy(File(header, "12345678"));
    EXPECT_EQ(array.status().code(), absl::StatusCode::kInvalidArgument) << header;
  }
}

}  // namespace
}  // namespace gemmd
