// SPDX-License-Identifier: Apache-2.0
#include "proto/warm_up_manifest.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

using ::testing::StartsWith;

constexpr char kDense[] = R"("op": "DENSE", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "n": 2112, "k": 7168)";

std::string OneShape(const std::string& fields) { return absl::StrCat("{\"shapes\": [{", fields, "}]}"); }

std::string ErrorOf(const std::string& text) {
  const absl::StatusOr<v1::WarmUpRequest> request = ParseWarmUpManifest(text);
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(request.status().message());
}

TEST(WarmUpManifestTest, EveryFieldIsRead) {
  const auto request = ParseWarmUpManifest(OneShape(
      R"("op": "M_GROUPED_MASKED", "scaling": "SCALING_NONE", "d_dtype": "F32", "m": 1, "n": 2, "k": 3, "groups": 4,)"
      R"("accumulate": true)"));
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->shapes_size(), 1);
  const v1::WarmUpShape& shape = request->shapes(0);
  EXPECT_EQ(shape.op(), v1::WarmUpShape::M_GROUPED_MASKED);
  EXPECT_EQ(shape.scaling(), v1::SCALING_NONE);
  EXPECT_EQ(shape.d_dtype(), v1::F32);
  EXPECT_EQ(shape.m(), 1);
  EXPECT_EQ(shape.n(), 2);
  EXPECT_EQ(shape.k(), 3);
  EXPECT_EQ(shape.groups(), 4);
  EXPECT_TRUE(shape.accumulate());
}

TEST(WarmUpManifestTest, MAndGroupsMayBeLeftOut) {
  const auto request = ParseWarmUpManifest(OneShape(kDense));
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->shapes(0).m(), 0);
  EXPECT_EQ(request->shapes(0).groups(), 0);
}

TEST(WarmUpManifestTest, ItIsTheJsonOfTheRequest) {
  const std::string text = OneShape(absl::StrCat(kDense, R"(, "m": 5)"));
  v1::WarmUpRequest expected;
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(text, &expected).ok());
  const auto request = ParseWarmUpManifest(text);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->DebugString(), expected.DebugString());
}

TEST(WarmUpManifestTest, SyntaxErrorsNameTheLine) {
  EXPECT_THAT(ErrorOf("{\n\"shapes\": [\n}"), StartsWith("parse error at line 3, column 1: "));
  EXPECT_THAT(ErrorOf(""), StartsWith("parse error at line 1, column 1: "));
}

TEST(WarmUpManifestTest, WhatIsNoListOfShapesIsRefused) {
  for (const char* text : {"[]", "1", "{}", R"({"shapes": {}})", R"({"shapes": [], "more": 1})", R"({"shape": []})"}) {
    EXPECT_THAT(ErrorOf(text), StartsWith("manifest: expected {\"shapes\": [...]}, got ")) << text;
  }
  EXPECT_EQ(ErrorOf(R"({"shapes": []})"), "shapes: expected at least one, got none");
  EXPECT_EQ(ErrorOf(R"({"shapes": [7]})"), "shapes[0]: expected an object, got 7");
}

TEST(WarmUpManifestTest, WrongFieldsAreNamedWithWhatWasExpected) {
  const auto with = [](const std::string& field) { return OneShape(absl::StrCat(kDense, ", ", field)); };
  EXPECT_EQ(ErrorOf(with(R"("rows": 1)")),
            "shapes[0]: expected the fields op, scaling, m, n, k, groups, d_dtype, accumulate, got \"rows\"");
  EXPECT_EQ(ErrorOf(with(R"("m": -1)")), "shapes[0].m: expected an integer of at least 0, got -1");
  EXPECT_EQ(ErrorOf(with(R"("m": 1.5)")), "shapes[0].m: expected an integer of at least 0, got 1.5");
  EXPECT_EQ(ErrorOf(with(R"("m": "1")")), "shapes[0].m: expected an integer of at least 0, got \"1\"");
  EXPECT_EQ(ErrorOf(with(R"("m": 9223372036854775808)")),
            "shapes[0].m: expected an integer of at least 0, got 9223372036854775808");
  EXPECT_EQ(ErrorOf(with(R"("accumulate": 1)")), "shapes[0].accumulate: expected true or false, got 1");
  EXPECT_EQ(ErrorOf(with(R"("op": "dense")")),
            "shapes[0].op: expected one of DENSE, M_GROUPED_CONTIGUOUS, M_GROUPED_MASKED, K_GROUPED, got \"dense\"");
  EXPECT_EQ(ErrorOf(with(R"("op": 1)")),
            "shapes[0].op: expected one of DENSE, M_GROUPED_CONTIGUOUS, M_GROUPED_MASKED, K_GROUPED, got 1");
  EXPECT_THAT(ErrorOf(with(R"("op": "OP_UNSPECIFIED")")), StartsWith("shapes[0].op: expected one of DENSE,"));
}

TEST(WarmUpManifestTest, EveryOtherFieldIsRequired) {
  EXPECT_EQ(ErrorOf(OneShape(R"("op": "DENSE", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "n": 1)")),
            "shapes[0].k: expected a value, got none");
  const std::string second = absl::StrCat(R"({"shapes": [{)", kDense, R"(}, {"op": "DENSE"}]})");
  EXPECT_EQ(ErrorOf(second), "shapes[1].scaling: expected a value, got none");
}

TEST(WarmUpManifestTest, LongTextsAreCutInErrors) {
  EXPECT_LT(ErrorOf(absl::StrCat("[\"", std::string(1000, 'x'), "\"]")).size(), 100u);
}

TEST(WarmUpManifestTest, AFileThatIsNotThereIsNamed) {
  EXPECT_EQ(ReadWarmUpManifest("/nonexistent").status(),
            absl::InvalidArgumentError("/nonexistent: expected a readable file, got No such file or directory"));
}

}  // namespace
}  // namespace gemmd
