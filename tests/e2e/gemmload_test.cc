// SPDX-License-Identifier: Apache-2.0
// gemmload as a program: what it counts when the server is slow or wrong, its exit status, and the files it writes. The
// server is a fake worker, whose time and results a test chooses.
#include "client/stored_array.h"
#include "tests/fault/fault_fixture.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(100);

class GemmloadTest : public ::testing::Test {
 protected:
  // A daemon whose worker is the fake one with these flags.
  void StartFake(const std::vector<std::string>& flags) {
    auto daemon = testing::Daemon::Start(
        {.flags = {"--worker_binary=" + testing::WorkerWithFlags(directory_, "gemmd-worker-fake", flags)}});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  testing::ProgramResult Load(const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmload", "--server=" + daemon_->address(),
                                          "--warmup=0s"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const auto result = testing::RunProgram(arguments, kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::ProgramResult();
  }

  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }

  const testing::TemporaryDirectory directory_;
  std::unique_ptr<testing::Daemon> daemon_;
};

TEST_F(GemmloadTest, AnOpenLoopCountsFromTheIntendedStart) {
  // 20 requests in the first second, of which the server takes four in a second, one at a time: the last one waits for
  // some four seconds, though each takes a quarter of a second from sending to the answer.
  StartFake({"--delay_us=250000", "--merging=false"});
  const testing::ProgramResult result =
      Load({"--mode=open", "--arrival=constant", "--rate=20", "--max_in_flight=1", "--duration=1s", "--json"});
  EXPECT_EQ(result.exit_status, 0) << result.output;
  const Json report = Json::parse(result.output, nullptr, false);
  ASSERT_TRUE(report.is_object()) << result.output;
  EXPECT_EQ(report.value("succeeded", 0), 20);
  const double latency = report["latency_seconds"].value("max", 0.0);
  const double service = report["service_seconds"].value("max", 0.0);
  EXPECT_GE(service, 0.25);
  EXPECT_GE(latency, 20 * 0.25 - 1) << "the slow server hides behind a generator that waits for it";
  EXPECT_GE(report["latency_seconds"].value("p50", 0.0), 10 * 0.25 - 0.5);
  EXPECT_GE(report["late_seconds"].value("max", 0.0), latency - service - 0.01);
}

TEST_F(GemmloadTest, AWrongResultSetsTheExitStatus) {
  StartFake({"--fill=0"});
  const testing::ProgramResult wrong = Load({"--concurrency=2", "--duration=100ms", "--check"});
  EXPECT_EQ(wrong.exit_status, 1);
  EXPECT_THAT(wrong.output, HasSubstr("2 results checked, 2 wrong"));
  const testing::ProgramResult unchecked = Load({"--concurrency=2", "--duration=100ms"});
  EXPECT_EQ(unchecked.exit_status, 0) << unchecked.output;
}

TEST_F(GemmloadTest, AMissedObjectiveSetsTheExitStatus) {
  StartFake({"--delay_us=20000"});
  const testing::ProgramResult missed = Load({"--concurrency=1", "--duration=100ms", "--slo=p50=1ms"});
  EXPECT_EQ(missed.exit_status, 1);
  EXPECT_THAT(missed.output, HasSubstr("slo: expected p50 of at most 1ms"));
  const testing::ProgramResult met = Load({"--concurrency=1", "--duration=100ms", "--slo=max=1h,p50=1h"});
  EXPECT_EQ(met.exit_status, 0) << met.output;
  EXPECT_EQ(Load({"--slo=p98=1ms"}).exit_status, 1);
}

TEST_F(GemmloadTest, FailedRequestsSetTheExitStatus) {
  StartFake({"--fail_every=2"});
  const testing::ProgramResult result = Load({"--concurrency=1", "--duration=100ms", "--weights=request"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.output, HasSubstr("errors: "));
}

TEST_F(GemmloadTest, TheReportIsAlsoWrittenAsCsv) {
  StartFake({"--delay_us=1000"});
  ASSERT_EQ(Load({"--concurrency=1", "--duration=100ms", "--csv=" + Path("run.csv")}).exit_status, 0);
  const auto file = ReadFile(Path("run.csv"));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<std::string> lines = absl::StrSplit(*file, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 2u) << *file;
  const std::vector<std::string> names = absl::StrSplit(lines[0], ',');
  const std::vector<std::string> values = absl::StrSplit(lines[1], ',');
  ASSERT_EQ(names.size(), values.size());
  std::map<std::string, double> row;
  for (size_t i = 0; i < names.size(); ++i) ASSERT_TRUE(absl::SimpleAtod(values[i], &row[names[i]])) << values[i];
  EXPECT_GT(row["succeeded"], 0);
  EXPECT_EQ(row["errors"], 0);
  EXPECT_GE(row["latency_p50_seconds"], 0.001);
  EXPECT_GE(row["latency_max_seconds"], row["latency_p50_seconds"]);
}

TEST_F(GemmloadTest, TheReportIsAlsoDrawn) {
  StartFake({"--delay_us=1000"});
  const testing::ProgramResult result =
      Load({"--concurrency=3", "--duration=300ms", "--plot=" + Path("run.svg"), "--json"});
  ASSERT_EQ(result.exit_status, 0) << result.output;
  const Json report = Json::parse(result.output, nullptr, false);
  ASSERT_TRUE(report.is_object()) << result.output;
  const auto file = ReadFile(Path("run.svg"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*file, HasSubstr("gemmload: tiny, closed loop, 3 in flight, host, unary"));
  EXPECT_THAT(*file, HasSubstr(absl::StrCat(report.value("succeeded", 0), " requests in ")));
  EXPECT_EQ(Load({"--duration=10ms", "--plot=/nonexistent/run.svg"}).exit_status, 1);
}

}  // namespace
}  // namespace gemmd
