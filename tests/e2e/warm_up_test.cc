// SPDX-License-Identifier: Apache-2.0
// Warm-up by manifest: at the start of gemmd, and of a gemmd that runs.
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr char kManifest[] = R"({"shapes": [
  {"op": "DENSE", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "m": 0, "n": 2112, "k": 7168},
  {"op": "M_GROUPED_MASKED", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "n": 4096, "k": 7168, "groups": 8}
]})";

class WarmUpTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& text) const {
    const std::string path = directory_.path() + "/manifest.json";
    EXPECT_TRUE(testing::ReplaceFile(path, text).ok());
    return path;
  }

  // gemmd's own output and status, with its workers' log beside it; only for one that does not start.
  testing::ProgramResult RunGemmd(const std::string& manifest) const {
    const auto result =
        testing::RunProgram({testing::BinaryDirectory() + "/gemmd", "--metrics_listen=", "--workers=cpu",
                             "--listen=unix:" + directory_.path() + "/g.sock", "--warmup_manifest=" + manifest},
                            kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::ProgramResult();
  }

  testing::ProgramResult WarmUp(const testing::Daemon& daemon, const std::vector<std::string>& flags) const {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmctl", "--server=" + daemon.address(),
                                          "warmup"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const auto result = testing::RunProgram(arguments, kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::ProgramResult();
  }

  const testing::TemporaryDirectory directory_;
};

TEST_F(WarmUpTest, GemmdIsReadyWithItsManifestPrepared) {
  // Standard error beside standard output: what the log says before the ready line came before it.
  const auto process = testing::ChildProcess::Start(
      {"/bin/sh", "-c", R"(exec "$0" "$@" 2>&1)", testing::BinaryDirectory() + "/gemmd", "--metrics_listen=",
       "--workers=cpu", "--listen=unix:" + directory_.path() + "/g.sock", "--warmup_manifest=" + Write(kManifest)});
  ASSERT_TRUE(process.ok()) << process.status();
  std::string before;
  for (;;) {
    const auto line = (*process)->ReadLine(kPatience);
    ASSERT_TRUE(line.ok()) << line.status() << before;
    if (line->find("gemmd ready:") == 0) break;
    absl::StrAppend(&before, *line, "\n");
  }
  EXPECT_THAT(before, HasSubstr("worker 0: warm, 2 shapes prepared"));
}

TEST_F(WarmUpTest, GemmdDoesNotStartWithAManifestThatItCannotRead) {
  const std::string missing = directory_.path() + "/none.json";
  const auto no_file = RunGemmd(missing);
  EXPECT_EQ(no_file.exit_status, 1);
  EXPECT_EQ(no_file.output, absl::StrCat("gemmd: --warmup_manifest: ", missing,
                                         ": expected a readable file, got No such file or directory\n"));
  const std::string path = Write("{\"shapes\": [\n}\n");
  EXPECT_THAT(RunGemmd(path).output, HasSubstr(absl::StrCat(path, ": parse error at line 2, column 1: ")));
  Write(R"({"shapes": [{"op": "DENSE", "scaling": "SCALING_1D2D", "d_dtype": "BF16", "n": 0, "k": 1}]})");
  const auto no_n = RunGemmd(path);
  EXPECT_EQ(no_n.exit_status, 1);
  EXPECT_EQ(no_n.output,
            absl::StrCat("gemmd: --warmup_manifest: ", path, ": shapes[0].n: expected at least 1, got 0\n"));
}

TEST_F(WarmUpTest, GemmctlWarmsUpARunningGemmd) {
  const auto daemon = testing::Daemon::Start();
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const auto by_manifest = WarmUp(**daemon, {"--manifest=" + Write(kManifest)});
  EXPECT_EQ(by_manifest.exit_status, 0);
  EXPECT_THAT(by_manifest.output, HasSubstr("2 kernels ready, 0 of them compiled now"));
  const auto by_shapes = WarmUp(**daemon, {"--shapes=64x2112x7168,8x0x4096x7168,1x1x1"});
  EXPECT_THAT(by_shapes.output, HasSubstr("3 kernels ready, 0 of them compiled now"));
}

TEST_F(WarmUpTest, GemmctlSaysWhatIsWrong) {
  const auto daemon = testing::Daemon::Start();
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const auto both = WarmUp(**daemon, {"--manifest=" + Write(kManifest), "--shapes=1x1x1"});
  EXPECT_EQ(both.exit_status, 1);
  EXPECT_THAT(both.output, HasSubstr("expected --shapes or --manifest, got both"));
  EXPECT_THAT(WarmUp(**daemon, {}).output, HasSubstr("expected --shapes or --manifest, got neither"));
  EXPECT_THAT(WarmUp(**daemon, {"--shapes=1x0x1"}).output, HasSubstr("shapes[0].n: expected at least 1, got 0"));
}

}  // namespace
}  // namespace gemmd
