// SPDX-License-Identifier: Apache-2.0
// gemmctl as people and scripts use it: what it prints, as tables and as JSON, what it leaves in files, and its exit
// status.
#include "client/npy.h"
#include "client/random_data.h"
#include "client/safetensors.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <string>
#include <sys/wait.h>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

class GemmctlTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto daemon = testing::Daemon::Start();
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }
  static void TearDownTestSuite() { daemon_.reset(); }

  static testing::ProgramResult Run(const std::vector<std::string>& words, const std::string& server = "") {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmctl",
                                          "--server=" + (server.empty() ? daemon_->address() : server)};
    arguments.insert(arguments.end(), words.begin(), words.end());
    const auto result = testing::RunProgram(arguments, kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::ProgramResult();
  }

  // The one document that a command prints.
  static Json RunJson(std::vector<std::string> words) {
    words.insert(words.begin(), "--json");
    const testing::ProgramResult result = Run(words);
    EXPECT_EQ(result.exit_status, 0) << words[1] << ": " << result.output;
    Json json = Json::parse(result.output, nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(json.is_object()) << words[1] << ": " << result.output;
    return json.is_object() ? json : Json::object();
  }

  static StoredArray Matrix() {
    StoredArray array{DType::kF32, {6, 16}, std::string(6 * 16 * sizeof(float), '\0')};
    FillRandom(1, 6, 16, absl::MakeSpan(reinterpret_cast<float*>(array.bytes.data()), 6 * 16));
    return array;
  }

  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }

  const testing::TemporaryDirectory directory_;
  static inline std::unique_ptr<testing::Daemon> daemon_;
};

TEST_F(GemmctlTest, HelpListsTheFlagsOfEveryFile) {
  for (const char* program : {"/gemmctl", "/gemmload"}) {
    const auto result = testing::RunProgram({testing::BinaryDirectory() + program, "--help"}, kPatience);
    ASSERT_TRUE(result.ok()) << result.status();
    for (const char* flag : {"--server (", "--token_file (", "--tls (", "--json ("}) {
      EXPECT_THAT(result->output, HasSubstr(flag)) << program;
    }
    EXPECT_THAT(result->output, Not(HasSubstr("--flagfile ("))) << program << " lists a library's flags";
  }
}

TEST_F(GemmctlTest, ANpyFileGoesToGemmdAndBack) {
  const std::string file = FormatNpy(Matrix());
  ASSERT_TRUE(WriteFile(Path("layer0.npy"), file).ok());
  const testing::ProgramResult put = Run({"put", Path("layer0.npy")});
  ASSERT_EQ(put.exit_status, 0) << put.output;
  EXPECT_THAT(put.output, HasSubstr("layer0"));
  EXPECT_THAT(put.output, HasSubstr("6x16"));
  EXPECT_THAT(Run({"list"}).output, HasSubstr("layer0"));
  const testing::ProgramResult get = Run({"get", "layer0", Path("back.npy")});
  ASSERT_EQ(get.exit_status, 0) << get.output;
  EXPECT_EQ(ReadFile(Path("back.npy")).value_or("none"), file);
  EXPECT_EQ(Run({"rm", "layer0"}).exit_status, 0);
  const testing::ProgramResult gone = Run({"get", "layer0", Path("gone.npy")});
  EXPECT_EQ(gone.exit_status, 1);
  EXPECT_THAT(gone.output, HasSubstr("NOT_FOUND"));
}

TEST_F(GemmctlTest, ATensorOfASafetensorsFileGoesToGemmdAndBack) {
  const StoredArray matrix = Matrix();
  ASSERT_TRUE(
      WriteFile(Path("model.safetensors"), FormatSafetensors({{"other", {DType::kU8, {3}, "abc"}}, {"w", matrix}}))
          .ok());
  EXPECT_EQ(Run({"put", Path("model.safetensors")}).exit_status, 1) << "of two tensors, which?";
  const testing::ProgramResult put = Run({"put", Path("model.safetensors"), "--tensor=w", "--name=layer1.w"});
  ASSERT_EQ(put.exit_status, 0) << put.output;
  const testing::ProgramResult get = Run({"get", "layer1.w", Path("back.safetensors")});
  ASSERT_EQ(get.exit_status, 0) << get.output;
  const auto back = ReadSafetensors(ReadFile(Path("back.safetensors")).value_or(""), "layer1.w");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->dtype, matrix.dtype);
  EXPECT_EQ(back->shape, matrix.shape);
  EXPECT_EQ(back->bytes, matrix.bytes);
  EXPECT_EQ(Run({"rm", "layer1.w"}).exit_status, 0);
}

TEST_F(GemmctlTest, TensorCommandsPrintJson) {
  ASSERT_TRUE(WriteFile(Path("layer2.npy"), FormatNpy(Matrix())).ok());
  const Json put = RunJson({"put", Path("layer2.npy")});
  EXPECT_EQ(put.value("name", ""), "layer2");
  EXPECT_EQ(put.value("dtype", ""), "f32");
  EXPECT_EQ(put.value("shape", std::vector<int>()), (std::vector<int>{6, 16}));
  EXPECT_EQ(put.value("bytes_written", 0), 6 * 16 * 4);
  const Json list = RunJson({"list"});
  ASSERT_EQ(list.value("tensors", Json::array()).size(), 1u) << list;
  EXPECT_EQ(list["tensors"][0].value("id", 0), put.value("id", -1));
  EXPECT_EQ(RunJson({"get", "layer2", Path("back.npy")}).value("byte_size", 0), 6 * 16 * 4);
  EXPECT_EQ(RunJson({"rm", absl::StrCat(put.value("id", 0))}).value("removed", 0), put.value("id", -1));
  EXPECT_TRUE(RunJson({"list"}).value("tensors", Json()).empty());
}

TEST_F(GemmctlTest, OperatorCommandsPrintJson) {
  const Json health = RunJson({"health"});
  EXPECT_EQ(health.value("status", ""), "SERVING");
  const Json info = RunJson({"info"});
  EXPECT_FALSE(info.value("version", "").empty());
  EXPECT_FALSE(info.value("draining", true));
  ASSERT_EQ(info.value("workers", Json::array()).size(), 1u) << info;
  EXPECT_EQ(info["workers"][0].value("state", ""), "READY");
  EXPECT_TRUE(RunJson({"warmup", "--shapes=16x128x128"}).contains("kernels_ready"));
  EXPECT_EQ(RunJson({"loglevel", "warning"}).value("previous_level", ""), "info");
  EXPECT_TRUE(RunJson({"top", "--updates=1", "--interval=10ms"}).contains("workers"));
}

TEST_F(GemmctlTest, GemmPrintsItsErrorAsJson) {
  const Json gemm = RunJson({"gemm", "--m=5", "--n=128", "--k=256", "--check"});
  EXPECT_EQ(gemm.value("op", ""), "dense");
  EXPECT_GT(gemm.value("seconds", 0.0), 0);
  EXPECT_GT(gemm.value("check", Json::object()).value("relative_frobenius", 0.0), 0);
}

TEST_F(GemmctlTest, ABf16AOnFp8WeightsIsChecked) {
  for (const char* op : {"dense", "contiguous", "masked"}) {
    const testing::ProgramResult result = Run({"gemm", absl::StrCat("--op=", op), "--a_dtype=bf16", "--m=12", "--n=128",
                                               "--k=272", "--groups=3", "--check", "--transport=tensor"});
    EXPECT_EQ(result.exit_status, 0) << op << ": " << result.output;
  }
  EXPECT_EQ(Run({"gemm", "--op=k_grouped", "--a_dtype=bf16"}).exit_status, 1);
  EXPECT_EQ(Run({"gemm", "--scaling=bf16", "--a_dtype=e4m3"}).exit_status, 1);
}

TEST_F(GemmctlTest, MisuseIsToldFromFailure) {
  EXPECT_EQ(Run({"dance"}).exit_status, 2);
  EXPECT_EQ(Run({"rm"}).exit_status, 1);
  EXPECT_EQ(Run({"info"}, "unix:" + Path("nobody.sock")).exit_status, 1);
}

TEST_F(GemmctlTest, DrainEndsTheDaemonWithStatusZero) {
  const auto daemon = testing::Daemon::Start();
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const testing::ProgramResult drain = Run({"drain"}, (*daemon)->address());
  EXPECT_EQ(drain.exit_status, 0) << drain.output;
  const absl::StatusOr<int> status = (*daemon)->process().WaitForExit(kPatience);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
  EXPECT_EQ(Run({"health"}, (*daemon)->address()).exit_status, 1);
}

}  // namespace
}  // namespace gemmd
