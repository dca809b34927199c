// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

TEST(TensorManifestTest, FieldsAreThoseOfTheRequest) {
  const auto manifest = ParseTensorManifest(R"({"tensors": [
      {"name": "w", "file": {"path": "m.safetensors", "tensor": "a.w"}, "transpose": true,
       "quantize": "BLOCK_128X128"},
      {"name": "bias", "file": {"path": "b.safetensors"}, "dtype": "F32", "shape": [3]}]})");
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  ASSERT_EQ(manifest->tensors_size(), 2);
  EXPECT_EQ(manifest->tensors(0).file().tensor(), "a.w");
  EXPECT_EQ(manifest->tensors(0).quantize(), v1::Quantize::BLOCK_128X128);
  EXPECT_TRUE(manifest->tensors(0).transpose());
  EXPECT_TRUE(manifest->tensors(0).shared());
  EXPECT_EQ(manifest->tensors(1).dtype(), v1::F32);
  EXPECT_EQ(manifest->tensors(1).shape(0), 3);
}

TEST(TensorManifestTest, ErrorsNameTheField) {
  struct Case {
    const char* text;
    const char* error;
  };
  const Case cases[] = {
      {"{}", "tensors: expected at least one, got none"},
      {R"({"tensors": []})", "tensors: expected at least one, got none"},
      {R"({"tensors": [{"file": {"path": "a"}}]})", "tensors[0].name: expected one, got none"},
      {R"({"tensors": [{"name": "w"}]})", "tensors[0].file: expected a path, got none"},
      {R"({"tensors": [{"name": "w", "data": {"inline": "AA=="}}]})", "tensors[0].file: expected a path, got none"},
      {R"({"tensors": [{"nam": "w"}]})", "nam: Cannot find field"},
      {R"({"tensors": [{"name": "w", "quantize": "BLOCK"}]})", "quantize"},
      {R"({"tensors": [{"name": "w"}})", "Expected"},
      {"", ""},
  };
  for (const Case& bad : cases) {
    const auto manifest = ParseTensorManifest(bad.text);
    EXPECT_EQ(manifest.status().code(), absl::StatusCode::kInvalidArgument) << bad.text;
    EXPECT_THAT(std::string(manifest.status().message()), HasSubstr(bad.error));
  }
}

}  // namespace
}  // namespace gemmd
