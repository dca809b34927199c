// SPDX-License-Identifier: Apache-2.0
#include "proto/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

constexpr char kExample[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceContextTest, TheExampleOfTheSpecificationIsParsed) {
  const auto context = ParseTraceparent(kExample);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id.high, 0x4bf92f3577b34da6u);
  EXPECT_EQ(context->trace_id.low, 0xa3ce929d0e0e4736u);
  EXPECT_EQ(context->span_id, 0x00f067aa0ba902b7u);
  EXPECT_TRUE(context->sampled);
}

TEST(TraceContextTest, WhatIsFormattedIsParsedToTheSame) {
  for (const bool sampled : {false, true}) {
    const TraceContext context{{1, 2}, 3, sampled};
    EXPECT_EQ(ParseTraceparent(FormatTraceparent(context)), context);
  }
  EXPECT_EQ(FormatTraceparent(*ParseTraceparent(kExample)), kExample);
}

TEST(TraceContextTest, OnlyTheLowestFlagMeansSampled) {
  EXPECT_FALSE(ParseTraceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")->sampled);
  EXPECT_FALSE(ParseTraceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe")->sampled);
  EXPECT_TRUE(ParseTraceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff")->sampled);
}

TEST(TraceContextTest, HalfAZeroIdIsAnId) {
  EXPECT_TRUE(ParseTraceparent("00-00000000000000000000000000000001-0000000000000001-00").has_value());
  EXPECT_TRUE(ParseTraceparent("00-80000000000000000000000000000000-8000000000000000-00").has_value());
}

TEST(TraceContextTest, ALaterVersionMayGoOnBehindADash) {
  EXPECT_TRUE(ParseTraceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").has_value());
  EXPECT_TRUE(ParseTraceparent("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what the future").has_value());
  EXPECT_FALSE(ParseTraceparent("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what").has_value());
}

TEST(TraceContextTest, EverythingElseIsMalformed) {
  for (const char* text : {"", "00", "00-", "garbage",
                           "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",       // A version that is none.
                           "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",       // Not hex.
                           "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",       // Upper case.
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",       //
                           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",       // No trace.
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",       // No span.
                           "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",        // Too short.
                           "00-4bf92f3577b34da6a3ce929d0e0e47366-00f067aa0ba902b7-01",      // Too long.
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",        //
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",      // Version 00 ends here.
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",  //
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",       //
                           "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",       //
                           " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",      //
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 "}) {
    EXPECT_FALSE(ParseTraceparent(text).has_value()) << text;
  }
}

TEST(TraceContextTest, NoByteOfTheTextMayBeReplaced) {
  const std::string example = kExample;
  for (size_t i = 0; i < example.size(); ++i) {
    for (const char c : {'\0', '\n', ' ', 'G', '\x7f', '\xff'}) {
      std::string text = example;
      text[i] = c;
      EXPECT_FALSE(ParseTraceparent(text).has_value()) << i;
    }
  }
}

}  // namespace
}  // namespace gemmd
