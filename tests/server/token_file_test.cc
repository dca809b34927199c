// SPDX-License-Identifier: Apache-2.0
#include "server/token_file.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <vector>

namespace gemmd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TokenFileTest : public ::testing::Test {
 protected:
  TokenFileTest() {
    std::string name = "/tmp/gemmd-tokens-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) std::abort();
    directory_ = name;
    path_ = directory_ + "/tokens";
  }
  ~TokenFileTest() override { std::filesystem::remove_all(directory_); }

  // Replaces the file, as an operator should.
  void Write(const std::string& text, mode_t mode = 0600) const {
    const std::string fresh = path_ + ".new";
    std::ofstream(fresh) << text;
    ASSERT_EQ(chmod(fresh.c_str(), mode), 0);
    ASSERT_EQ(rename(fresh.c_str(), path_.c_str()), 0);
  }

  // A file that is looked at on every use.
  std::unique_ptr<TokenFile> Open() {
    auto file = TokenFile::Open(
        path_, [this](const absl::Status& status) { reloads_.push_back(status.code()); }, absl::ZeroDuration());
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *std::move(file) : nullptr;
  }

  std::string OpenError() const { return std::string(TokenFile::Open(path_).status().message()); }

  std::vector<absl::StatusCode> reloads_;  // Of what Open() gave.
  std::string directory_;
  std::string path_;
};

TEST_F(TokenFileTest, EveryTokenOfTheFileIsAcceptedAndNothingElse) {
  Write("first\n# third\nsecond\n");
  const auto file = Open();
  EXPECT_TRUE(file->Accepts("first"));
  EXPECT_TRUE(file->Accepts("second"));
  for (const char* other : {"", "third", "firs", "first ", "firsts", "FIRST", "# third"}) {
    EXPECT_FALSE(file->Accepts(other)) << other;
  }
}

TEST_F(TokenFileTest, AChangedFileIsReadAgain) {
  Write("old\n");
  const auto file = Open();
  Write("new\n");
  EXPECT_FALSE(file->Accepts("old"));
  EXPECT_TRUE(file->Accepts("new"));
}

TEST_F(TokenFileTest, EachReadingAfterTheFirstIsReportedOnce) {
  Write("old\n");
  const auto file = Open();
  file->Accepts("old");
  EXPECT_THAT(reloads_, ElementsAre());
  Write("new\n");
  file->Accepts("old");
  file->Accepts("old");
  EXPECT_THAT(reloads_, ElementsAre(absl::StatusCode::kOk));
  Write("newer\n", 0644);
  file->Accepts("old");
  file->Accepts("old");
  EXPECT_THAT(reloads_, ElementsAre(absl::StatusCode::kOk, absl::StatusCode::kInvalidArgument));
}

TEST_F(TokenFileTest, AFileThatLostItsTokensAcceptsNone) {
  Write("old\n");
  const auto file = Open();
  Write("# none today\n");
  EXPECT_FALSE(file->Accepts("old"));
}

TEST_F(TokenFileTest, WhileTheFileCannotBeUsedTheTokensFromBeforeStay) {
  Write("old\n");
  const auto file = Open();
  ASSERT_EQ(unlink(path_.c_str()), 0);
  EXPECT_TRUE(file->Accepts("old"));
  Write("new\n", 0644);
  EXPECT_TRUE(file->Accepts("old"));
  EXPECT_FALSE(file->Accepts("new"));
  ASSERT_EQ(chmod(path_.c_str(), 0640), 0);
  EXPECT_TRUE(file->Accepts("new"));
  EXPECT_FALSE(file->Accepts("old"));
}

TEST_F(TokenFileTest, WithinTheRefreshTimeTheFileIsNotLookedAt) {
  Write("old\n");
  const auto file = TokenFile::Open(
      path_, [](const absl::Status&) {}, absl::Hours(1));
  Write("new\n");
  EXPECT_TRUE((*file)->Accepts("old"));
}

TEST_F(TokenFileTest, AFileThatOthersMayUseIsRefused) {
  for (const mode_t mode : {0604, 0602, 0644}) {
    Write("token\n", mode);
    EXPECT_THAT(OpenError(), HasSubstr("expected a file that only its owner and group may use, got mode 0"));
  }
  Write("token\n", 0640);
  EXPECT_EQ(OpenError(), "");
}

TEST_F(TokenFileTest, AMissingFileIsRefused) {
  EXPECT_EQ(OpenError(),
            absl::StrCat("--token_file: ", path_, ": expected a readable file, got No such file or directory"));
}

TEST_F(TokenFileTest, AFileWithoutTokensIsRefused) {
  Write("# nothing\n");
  EXPECT_EQ(OpenError(), absl::StrCat("--token_file: ", path_, ": expected at least one token, got none"));
}

TEST_F(TokenFileTest, ABadLineIsNamedAndNotShown) {
  Write("good\nmy secret\n");
  EXPECT_EQ(OpenError(),
            absl::StrCat("--token_file: ", path_, ": line 2: expected one token of visible ASCII characters"));
}

TEST_F(TokenFileTest, WhatIsNotARegularFileIsRefusedWithoutWaiting) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_THAT(OpenError(), HasSubstr("expected a regular file"));
}

TEST_F(TokenFileTest, AHugeFileIsRefused) {
  Write(std::string((1 << 20) + 1, '\n'));
  EXPECT_THAT(OpenError(), HasSubstr("expected at most 1048576 bytes, got 1048577"));
}

}  // namespace
}  // namespace gemmd
