// SPDX-License-Identifier: Apache-2.0
#include "proto/bearer_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemmd {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(BearerTokenTest, EachLineIsOneToken) {
  EXPECT_THAT(*ParseTokens("first\nsecond"), ElementsAre("first", "second"));
  EXPECT_THAT(*ParseTokens("first\nsecond\n"), ElementsAre("first", "second"));
}

TEST(BearerTokenTest, CommentsEmptyLinesAndSpacesAroundAreNotPartOfIt) {
  EXPECT_THAT(*ParseTokens("# a comment\n\n  first \r\n\t# another\nwith#inside\n"),
              ElementsAre("first", "with#inside"));
  EXPECT_THAT(*ParseTokens(""), IsEmpty());
}

TEST(BearerTokenTest, TwoWordsOnALineAreRefusedWithItsNumberOnly) {
  const auto tokens = ParseTokens("good\n# comment\nmy secret\n");
  ASSERT_FALSE(tokens.ok());
  EXPECT_EQ(tokens.status(), absl::InvalidArgumentError("line 3: expected one token of visible ASCII characters"));
}

TEST(BearerTokenTest, BytesThatMetadataCannotCarryAreRefused) {
  EXPECT_FALSE(ParseTokens("caf\xc3\xa9").ok());
  EXPECT_FALSE(ParseTokens(absl::string_view("a\0b", 3)).ok());
}

TEST(BearerTokenTest, ATokenHasAtMost1024Characters) {
  EXPECT_TRUE(ParseTokens(std::string(kMaxTokenBytes, 'x')).ok());
  EXPECT_EQ(ParseTokens(std::string(kMaxTokenBytes + 1, 'x')).status().message(),
            "line 1: expected a token of at most 1024 characters, got 1025");
}

}  // namespace
}  // namespace gemmd
