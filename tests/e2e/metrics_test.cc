// SPDX-License-Identifier: Apache-2.0
// The metrics page of a live daemon: names as Prometheus wants them, every series from the first scrape on, and a table
// in server/README.md that names what there is.
#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <signal.h>
#include <string>
#include <vector>

namespace gemmd {
namespace {

struct FamilyText {
  std::string type;
  std::string help;
  std::set<std::string> series;  // With their labels, without values.
};

// The family of a sample: histograms have three suffixes.
std::string FamilyOf(absl::string_view sample, const std::map<std::string, FamilyText>& families) {
  const std::string name(sample.substr(0, sample.find('{')));
  for (const char* suffix : {"_bucket", "_sum", "_count"}) {
    const std::string family(absl::StripSuffix(name, suffix));
    const auto found = families.find(family);
    if (family != name && found != families.end() && found->second.type == "histogram") return family;
  }
  return name;
}

std::map<std::string, FamilyText> Parse(const std::string& page) {
  std::map<std::string, FamilyText> families;
  for (absl::string_view line : absl::StrSplit(page, '\n', absl::SkipEmpty())) {
    line = absl::StripSuffix(line, "\r");
    if (absl::ConsumePrefix(&line, "# HELP ")) {
      const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 1));
      EXPECT_EQ(families.count(words[0]), 0u) << words[0] << " is there twice";
      families[words[0]].help = words.size() > 1 ? words[1] : "";
    } else if (absl::ConsumePrefix(&line, "# TYPE ")) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      families[words[0]].type = words.at(1);
    } else if (absl::StartsWith(line, "gemmd_")) {
      const absl::string_view series = line.substr(0, line.rfind(' '));
      families[FamilyOf(series, families)].series.insert(std::string(series));
    }
  }
  return families;
}

// What `promtool check metrics` finds fault with, and our own rules.
std::vector<std::string> FaultsOf(const std::string& name, const FamilyText& family) {
  static const std::regex kName("gemmd(_[a-z][a-z0-9]*)+");
  static const std::regex kAbbreviation(
      "_(s|ms|us|ns|sec|secs|millis|micros|nanos|kb|mb|gb|kib|mib|b|mhz|ghz|w|mw|j)(_|$)");
  static const std::regex kOtherUnit(
      "_(milli|micro|nano|kilo|mega|giga|tera)?(minutes|hours|days|grams|bits|percent|fahrenheit|kelvin|microseconds|"
      "milliseconds|nanoseconds|kilobytes|megabytes|gigabytes|megahertz|milliwatts)(_|$)");
  static const std::regex kType("_(counter|gauge|histogram|summary|metric)(_|$)");
  std::vector<std::string> faults;
  const bool is_total = absl::EndsWith(name, "_total");
  if (!std::regex_match(name, kName)) faults.push_back("expected gemmd_ and lower-case words");
  if (family.help.empty() || family.help.back() != '.') faults.push_back("expected a help text that is a sentence");
  if (family.type == "counter" && !is_total) faults.push_back("a counter ends in _total");
  if (family.type != "counter" && is_total) faults.push_back("only a counter ends in _total");
  if (family.type != "counter" && family.type != "gauge" && family.type != "histogram") {
    faults.push_back(absl::StrCat("type ", family.type));
  }
  for (const char* suffix : {"_bucket", "_sum", "_count"}) {
    if (absl::EndsWith(name, suffix)) faults.push_back(absl::StrCat(suffix, " belongs to histograms"));
  }
  if (std::regex_search(name, kAbbreviation)) faults.push_back("expected units in words");
  if (std::regex_search(name, kOtherUnit)) faults.push_back("expected base units");
  if (std::regex_search(name, kType)) faults.push_back("the name says its type");
  const bool has_first_bucket = std::any_of(family.series.begin(), family.series.end(), [](const std::string& series) {
    return absl::StrContains(series, "le=\"5e-06\"");
  });
  if (family.type == "histogram" && absl::EndsWith(name, "_seconds") && !has_first_bucket) {
    faults.push_back("durations begin at 5 us");
  }
  return faults;
}

std::set<std::string> SeriesOf(const std::map<std::string, FamilyText>& families) {
  std::set<std::string> all;
  for (const auto& [name, family] : families) all.insert(family.series.begin(), family.series.end());
  return all;
}

absl::StatusOr<std::unique_ptr<Problem>> MakeProblem(Client* client, const ProblemSpec& spec, Transport transport) {
  constexpr uint64_t kSeed = 1;
  if (spec.op == Op::kQuantize) return Problem::Create(client, spec, transport, nullptr, kSeed);
  auto weights = Weights::Create(client, spec, transport, kSeed);
  if (!weights.ok()) return weights.status();
  return Problem::Create(client, spec, transport, *std::move(weights), kSeed);
}

class MetricsPageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto daemon = testing::Daemon::Start();
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  std::map<std::string, FamilyText> Scrape() const {
    const absl::StatusOr<std::string> page = daemon_->Metrics();
    EXPECT_TRUE(page.ok()) << page.status();
    return page.ok() ? Parse(*page) : std::map<std::string, FamilyText>();
  }

  std::unique_ptr<testing::Daemon> daemon_;
};

TEST_F(MetricsPageTest, NamesHelpAndTypesAreAsPrometheusWantsThem) {
  const auto families = Scrape();
  EXPECT_GT(families.size(), 40u);
  for (const auto& [name, family] : families) {
    if (!absl::StartsWith(name, "gemmd_")) continue;  // Of the listener's library.
    EXPECT_THAT(FaultsOf(name, family), ::testing::IsEmpty()) << name << ": " << family.help;
  }
}

TEST(MetricsLintTest, ItFindsWhatItLooksFor) {
  EXPECT_EQ(FaultsOf("gemmd_good_seconds", {"gauge", "Help.", {}}).size(), 0u);
  EXPECT_EQ(FaultsOf("gemmd_requests", {"counter", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_requests_total", {"gauge", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait_ms", {"gauge", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait_milliseconds", {"gauge", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_Wait", {"gauge", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("other_wait", {"gauge", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait", {"gauge", "", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait", {"untyped", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait_seconds", {"histogram", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait_count", {"gauge", "Help.", {}}).size(), 1u);
  EXPECT_EQ(FaultsOf("gemmd_wait_histogram", {"gauge", "Help.", {}}).size(), 1u);
}

TEST_F(MetricsPageTest, EverySeriesIsThereFromTheFirstScrapeOn) {
  const auto first = SeriesOf(Scrape());
  {
    const auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    for (const Op op : {Op::kDense, Op::kMGroupedContiguous, Op::kMGroupedMasked, Op::kKGrouped, Op::kQuantize}) {
      for (const Transport transport :
           {Transport::kInline, Transport::kHost, Transport::kSharedMemory, Transport::kTensor, Transport::kPool}) {
        ProblemSpec spec{.op = op, .m = 8, .n = 128, .k = 256};
        if (op == Op::kKGrouped) {
          spec.scaling = Scaling::k1D1D;
          spec.d_dtype = DType::kF32;
        }
        if (op != Op::kDense && op != Op::kQuantize) spec.groups = 2;
        const auto problem = MakeProblem(client->get(), spec, transport);
        ASSERT_TRUE(problem.ok()) << problem.status();
        const auto response = (*client)->Run((*problem)->request());
        EXPECT_TRUE(response.ok()) << response.status();
      }
    }
    EXPECT_FALSE((*client)->Run(v1::RunRequest()).ok());
  }
  for (const pid_t pid : daemon_->WorkerPids()) kill(pid, SIGKILL);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] {
    const auto restarts = daemon_->Metric(
        absl::StrCat("gemmd_worker_restarts_total{device=\"", daemon_->device(), "\",reason=\"signal\"}"));
    const auto ready = daemon_->Metric("gemmd_ready");
    return restarts.ok() && *restarts == 1 && ready.ok() && *ready == 1;
  }));
  EXPECT_THAT(SeriesOf(Scrape()), ::testing::ContainerEq(first));
}

TEST_F(MetricsPageTest, WhatAWorkerCountedStaysWhenItIsKilled) {
  const auto client = Client::Connect(daemon_->address());
  ASSERT_TRUE(client.ok()) << client.status();
  const auto problem = MakeProblem(client->get(), {.op = Op::kDense, .m = 4, .n = 128, .k = 128}, Transport::kInline);
  ASSERT_TRUE(problem.ok()) << problem.status();
  const std::string series =
      absl::StrCat("gemmd_flops_total{device=\"", daemon_->device(), "\",op=\"dense\",dtype=\"e4m3\"}");
  const double flops = 2.0 * 4 * 128 * 128;
  for (int i = 1; i <= 3; ++i) {
    absl::Status status;
    ASSERT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] {
      status = (*client)->Run((*problem)->request()).status();
      return status.ok() || !absl::IsUnavailable(status);
    }));
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(daemon_->Metric(series).value_or(-1), i * flops);
    for (const pid_t pid : daemon_->WorkerPids()) kill(pid, SIGKILL);
    // Neither while it is dead nor with its successor does the counter go back.
    ASSERT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] {
      EXPECT_EQ(daemon_->Metric(series).value_or(-1), i * flops);
      return daemon_
                 ->Metric(
                     absl::StrCat("gemmd_worker_restarts_total{device=\"", daemon_->device(), "\",reason=\"signal\"}"))
                 .value_or(-1) == i;
    }));
  }
}

TEST_F(MetricsPageTest, TheTableOfTheReadmeNamesEveryFamilyAndNoOther) {
  std::ifstream file(GEMMD_SERVER_README);
  ASSERT_TRUE(file);
  const std::string readme((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t begin = readme.find("## Metrics");
  ASSERT_NE(begin, std::string::npos);
  const std::string section = readme.substr(begin, readme.find("\n## ", begin + 1) - begin);
  std::set<std::string> named;
  static const std::regex kName("`(gemmd_[a-z0-9_]+)`");
  for (std::sregex_iterator found(section.begin(), section.end(), kName), end; found != end; ++found) {
    named.insert((*found)[1]);
  }
  std::set<std::string> exported;
  for (const auto& [name, family] : Scrape()) {
    if (absl::StartsWith(name, "gemmd_")) exported.insert(name);
  }
  EXPECT_THAT(named, ::testing::ContainerEq(exported));
}

}  // namespace
}  // namespace gemmd
