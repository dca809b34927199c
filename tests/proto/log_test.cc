// SPDX-License-Identifier: Apache-2.0
#include "proto/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <sstream>
#include <string>

namespace gemmd {
namespace {

using Json = nlohmann::json;
using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr RequestTag kRequest{{0x4bf92f3577b34da6, 0xa3ce929d0e0e4736}, 42};

class LogTest : public ::testing::Test {
 protected:
  void Start(LogFormat format) {
    auto logger = std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_));
    logger->set_formatter(MakeLogFormatter(format));
    before_ = spdlog::default_logger();
    spdlog::set_default_logger(logger);
  }
  void TearDown() override {
    if (before_ != nullptr) spdlog::set_default_logger(before_);
  }
  std::string Text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_;
};

TEST_F(LogTest, ATextLineHasTimeProgramLevelAndMessage) {
  Start(LogFormat::kText);
  spdlog::info("drain: {}", "done");
  EXPECT_THAT(Text(), ::testing::MatchesRegex("\\[[-0-9]+ [:.0-9]+\\] \\[test\\] \\[info\\] drain: done\n"));
}

TEST_F(LogTest, ATextLineOfARequestNamesIt) {
  Start(LogFormat::kText);
  LogRequest(spdlog::level::err, kRequest, "failed");
  spdlog::info("another");
  EXPECT_THAT(Text(), HasSubstr("failed trace_id=4bf92f3577b34da6a3ce929d0e0e4736 request_id=42\n"));
  EXPECT_THAT(Text(), EndsWith("another\n"));
}

TEST_F(LogTest, AMessageCannotMakeALineOfItsOwn) {
  Start(LogFormat::kText);
  spdlog::info("name: {}", "a\nb\r\x1b[31m\x7f\t\xc2\x9b*");
  EXPECT_THAT(Text(), EndsWith("name: a\\nb\\x0d\\x1b[31m\\x7f\\x09\xc2\\x9b*\n"));
}

TEST_F(LogTest, OtherTextStaysAsItIs) {
  Start(LogFormat::kText);
  spdlog::info("name=\"caf\xc3\xa9 \\ 'x'\"");
  EXPECT_THAT(Text(), EndsWith("name=\"caf\xc3\xa9 \\ 'x'\"\n"));
}

TEST_F(LogTest, AJsonLineIsOneObject) {
  Start(LogFormat::kJson);
  spdlog::warn("say \"{}\"", "a\nb\x1b");
  const std::string text = Text();
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const Json json = Json::parse(text);
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["program"], "test");
  EXPECT_EQ(json["message"], "say \"a\nb\x1b\"");
  EXPECT_THAT(json["time"].get<std::string>(),
              ::testing::MatchesRegex("[0-9]+-[0-9]+-[0-9]+T[0-9]+:[0-9]+:[0-9]+\\.[0-9]+Z"));
  EXPECT_GT(json["pid"].get<int>(), 0);
  EXPECT_FALSE(json.contains("trace_id"));
}

TEST_F(LogTest, AJsonLineOfARequestNamesIt) {
  Start(LogFormat::kJson);
  LogRequest(spdlog::level::info, kRequest, "done");
  const Json json = Json::parse(Text());
  EXPECT_EQ(json["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(json["request_id"], 42);
}

TEST_F(LogTest, BytesThatAreNoTextDoNotCostTheLine) {
  Start(LogFormat::kJson);
  spdlog::info("bytes \xff\xfe end");
  EXPECT_THAT(Json::parse(Text())["message"].get<std::string>(), EndsWith(" end"));
}

TEST_F(LogTest, LinesBelowTheLevelAreNotWritten) {
  Start(LogFormat::kText);
  LogRequest(spdlog::level::debug, kRequest, "quiet");
  EXPECT_EQ(Text(), "");
}

TEST(LogLimiterTest, ARepeatedLineIsLeftOutUntilTheNextWindow) {
  constexpr uint64_t kStart = 1'000;
  LogLimiter limiter;
  for (int i = 0; i < LogLimiter::kLinesPerWindow; ++i) EXPECT_EQ(limiter.Admit(kStart), 0u);
  for (int i = 0; i < 7; ++i) EXPECT_EQ(limiter.Admit(kStart + LogLimiter::kWindowNanos - 1), std::nullopt);
  EXPECT_EQ(limiter.Admit(kStart + LogLimiter::kWindowNanos), 7u);
  EXPECT_EQ(limiter.Admit(kStart + LogLimiter::kWindowNanos), 0u);
}

TEST_F(LogTest, TheNumberOfLinesLeftOutIsSaid) {
  Start(LogFormat::kText);
  LogLimiter limiter;
  for (int i = 0; i < LogLimiter::kLinesPerWindow; ++i) EXPECT_TRUE(limiter.Admit(1).has_value());
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(limiter.Admit(1).has_value());
  limiter.Log(spdlog::level::warn, "again");  // Now is another window than shortly after the boot.
  EXPECT_THAT(Text(), EndsWith("again (3 more like this were left out)\n"));
}

TEST(LogFlagsTest, UnknownLevelsAndFormatsAreRefused) {
  EXPECT_EQ(ParseLogLevel("loud").status(),
            absl::InvalidArgumentError(
                "log_level: expected trace, debug, info, warning, error, critical or off, got \"loud\""));
  EXPECT_EQ(ParseLogFormat("xml").status(),
            absl::InvalidArgumentError("log_format: expected text or json, got \"xml\""));
  EXPECT_EQ(*ParseLogLevel("off"), spdlog::level::off);
  EXPECT_EQ(*ParseLogLevel("warning"), spdlog::level::warn);
  EXPECT_EQ(*ParseLogFormat("json"), LogFormat::kJson);
}

}  // namespace
}  // namespace gemmd
