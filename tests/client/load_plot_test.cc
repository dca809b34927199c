// SPDX-License-Identifier: Apache-2.0
#include "client/load_plot.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Why the text is not XML (of the simple kind: elements, attributes and the predefined entities); empty: it is.
std::string WhyNotXml(absl::string_view text) {
  std::vector<std::string> open;
  while (!text.empty()) {
    const size_t next = text.find_first_of("<&>");
    if (next == absl::string_view::npos) break;
    text.remove_prefix(next);
    if (text[0] == '>') return "a stray >";
    if (text[0] == '&') {
      const std::string entity(text.substr(0, text.find(';') + 1));
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;") return "entity " + entity;
      text.remove_prefix(entity.size());
      continue;
    }
    const size_t end = text.find('>');
    if (end == absl::string_view::npos) return "a tag without end";
    const absl::string_view tag = text.substr(1, end - 1);
    text.remove_prefix(end + 1);
    size_t quotes = 0;
    for (const char c : tag) quotes += c == '"' ? 1 : 0;
    if (quotes % 2 != 0 || absl::StrContains(tag, "<")) return absl::StrCat("tag ", tag);
    const std::string name(tag.substr(0, tag.find_first_of(" /", 1)));
    if (tag[0] == '/') {
      if (open.empty() || "/" + open.back() != tag) return absl::StrCat("unexpected ", tag);
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(name);
    }
  }
  return open.empty() ? "" : absl::StrCat(open.back(), " is not closed");
}

// 1000 answers in two seconds, 1 ms each, but one of 90 ms.
LoadReport Report() {
  LoadReport report;
  for (int i = 0; i < 1000; ++i) {
    report.latency.Record(i == 0 ? 90'000'000 : 1'000'000);
    report.service.Record(1'000'000);
    report.late.Record(0);
  }
  report.succeeded = 1000;
  report.seconds = 2;
  report.flops = 4e12;
  report.timeline.assign(20, 50);
  return report;
}

TEST(LoadPlotTest, ThePictureIsWellFormed) {
  EXPECT_EQ(WhyNotXml(ToSvg(Report(), "a run")), "");
  EXPECT_NE(WhyNotXml("<a><b></a>"), "");
}

TEST(LoadPlotTest, TheMeasuredValuesAreInThePicture) {
  const std::string svg = ToSvg(Report(), "a run");
  for (const char* text : {"a run", "p50 1 ms", "p99 1 ms", "max 90 ms", "mean 500.0/s", "2.00 TFLOP/s",
                           "1000 requests in 2.00 s, 0 errors"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
}

TEST(LoadPlotTest, AxesAreNamedWithTheirUnits) {
  const std::string svg = ToSvg(Report(), "a run");
  for (const char* text : {"percentile of requests (%)", "time since the warm-up (s)",
                           "throughput (answers per second)", ">99.9</text>", ">10 ms</text>"}) {
    EXPECT_THAT(svg, HasSubstr(text));
  }
}

TEST(LoadPlotTest, ItFollowsTheDarkSchemeAndNeedsNoOtherFile) {
  const std::string svg = ToSvg(Report(), "a run");
  EXPECT_THAT(svg, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(svg, Not(HasSubstr("href")));
  EXPECT_THAT(svg, Not(HasSubstr("url(")));
}

TEST(LoadPlotTest, TheTimeBeforeSendingIsShownWhereThereIsSome) {
  LoadReport report = Report();
  EXPECT_THAT(ToSvg(report, ""), Not(HasSubstr("from the intended start")));
  report.late.Record(80'000'000);
  EXPECT_THAT(ToSvg(report, ""), HasSubstr("from the intended start"));
}

TEST(LoadPlotTest, EveryAnswerIsInABar) {
  LoadReport report = Report();
  report.timeline.assign(205, 10);  // More stretches than bars.
  report.seconds = 20.43;
  report.succeeded = 2050;
  const std::string svg = ToSvg(report, "");
  EXPECT_EQ(WhyNotXml(svg), "");
  EXPECT_THAT(svg, HasSubstr("mean 100.3/s"));
}

TEST(LoadPlotTest, ARunWithoutAnswersSaysSo) {
  LoadReport report;
  report.errors["UNAVAILABLE"] = 7;
  const std::string svg = ToSvg(report, "<nothing & nobody>");
  EXPECT_EQ(WhyNotXml(svg), "");
  EXPECT_THAT(svg, HasSubstr("no request was answered; 7 errors"));
  EXPECT_THAT(svg, HasSubstr("&lt;nothing &amp; nobody&gt;"));
}

TEST(LoadPlotTest, OneAnswerIsEnough) {
  LoadReport report;
  report.latency.Record(1);
  report.service.Record(1);
  report.succeeded = 1;
  report.seconds = 0.001;
  report.timeline.assign(1, 1);
  EXPECT_EQ(WhyNotXml(ToSvg(report, "")), "");
}

}  // namespace
}  // namespace gemmd
