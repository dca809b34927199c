// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_files.h"

#include "tests/server/service_fixture.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

namespace gemmd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kHeader[] = R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";

std::string FileOf(const std::string& header, const std::string& data) {
  std::string length;
  for (size_t i = 0; i < 8; ++i) length.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return absl::StrCat(length, header, data);
}

class TensorFilesTest : public testing::Test {
 protected:
  TensorFilesTest() {
    std::filesystem::create_directories(inside_ + "/sub");
    std::filesystem::create_directories(outside_);
    Write(inside_ + "/a.safetensors", FileOf(kHeader, "abcd"));
    Write(inside_ + "/sub/b.safetensors", FileOf(kHeader, "efgh"));
    Write(outside_ + "/secret.safetensors", FileOf(kHeader, "ijkl"));
    auto files = TensorFiles::Open(std::vector<std::string>{inside_});
    EXPECT_TRUE(files.ok()) << files.status();
    if (files.ok()) files_ = *std::move(files);
  }

  static void Write(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
  }

  // The bytes of tensor "w", or why not.
  static absl::StatusOr<std::string> ReadW(const TensorFiles& files, const std::string& path) {
    const absl::StatusOr<TensorFile> file = files.OpenFile(path);
    if (!file.ok()) return file.status();
    const absl::StatusOr<SafetensorsEntry> entry = file->Find("w");
    if (!entry.ok()) return entry.status();
    std::string bytes(entry->end - entry->begin, '\0');
    absl::Status status = file->Read(entry->begin, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
    if (!status.ok()) return status;
    return bytes;
  }
  absl::StatusOr<std::string> ReadW(const std::string& path) { return ReadW(files_, path); }

  const TemporaryFolder folder_;
  const std::string inside_ = folder_.path() + "/inside";
  const std::string outside_ = folder_.path() + "/outside";
  TensorFiles files_;
};

TEST_F(TensorFilesTest, FilesBelowTheDirectoryAreRead) {
  EXPECT_EQ(ReadW("a.safetensors").value(), "abcd");
  EXPECT_EQ(ReadW("sub/b.safetensors").value(), "efgh");
  EXPECT_EQ(ReadW("sub/../a.safetensors").value(), "abcd");
}

TEST_F(TensorFilesTest, LinksInsideTheDirectoryAreFollowed) {
  std::filesystem::create_symlink("../a.safetensors", inside_ + "/sub/link");
  EXPECT_EQ(ReadW("sub/link").value(), "abcd");
}

TEST_F(TensorFilesTest, WhatIsOutsideIsNotFoundAndNotTold) {
  std::filesystem::create_symlink(outside_ + "/secret.safetensors", inside_ + "/absolute");
  std::filesystem::create_symlink("../outside/secret.safetensors", inside_ + "/relative");
  std::filesystem::create_directory_symlink(outside_, inside_ + "/directory");
  std::filesystem::create_symlink("/proc/self/root" + outside_ + "/secret.safetensors", inside_ + "/magic");
  const absl::Status missing = ReadW("missing").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("file.path: "));
  for (const char* path : {"../outside/secret.safetensors", "sub/../../outside/secret.safetensors", "absolute",
                           "relative", "directory/secret.safetensors", "magic", "directory/missing"}) {
    EXPECT_EQ(ReadW(path).status(), missing) << path;
  }
}

TEST_F(TensorFilesTest, OnlyRegularFilesAreOpened) {
  ASSERT_EQ(mkfifo((inside_ + "/pipe").c_str(), 0600), 0);
  const absl::Status missing = ReadW("missing").status();
  EXPECT_EQ(ReadW("pipe").status(), missing);
  EXPECT_EQ(ReadW("sub").status(), missing);
  EXPECT_EQ(ReadW(".").status(), missing);
  // Nodes of devices cannot be made by everybody; the directory of devices is there.
  const auto devices = TensorFiles::Open(std::vector<std::string>{"/dev"});
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_EQ(ReadW(*devices, "zero").status(), missing);
}

TEST_F(TensorFilesTest, PathsThatAreNoneAreRefused) {
  for (const std::string& path :
       {std::string(), std::string("/etc/passwd"), std::string(5000, 'a'), std::string("a.safetensors\0b", 15)}) {
    EXPECT_EQ(ReadW(path).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
}

TEST_F(TensorFilesTest, WithoutDirectoriesNothingIsRead) {
  const absl::Status status = ReadW(TensorFiles(), "a.safetensors").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message(), "file.path: this gemmd reads no files (no --tensor_dirs)");
}

TEST_F(TensorFilesTest, TheFirstDirectoryThatHasTheFileIsTaken) {
  const auto files = TensorFiles::Open(std::vector<std::string>{inside_ + "/sub", inside_, outside_});
  ASSERT_TRUE(files.ok()) << files.status();
  Write(outside_ + "/a.safetensors", FileOf(kHeader, "mnop"));
  EXPECT_EQ(ReadW(*files, "a.safetensors").value(), "abcd");
  EXPECT_EQ(ReadW(*files, "secret.safetensors").value(), "ijkl");
}

TEST_F(TensorFilesTest, DirectoriesThatAreNoneAreRefused) {
  const auto files = TensorFiles::Open(std::vector<std::string>{inside_ + "/a.safetensors"});
  EXPECT_EQ(files.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(files.status().message()), HasSubstr("--tensor_dirs: "));
}

TEST_F(TensorFilesTest, BrokenFilesAreRefused) {
  const std::string whole = FileOf(kHeader, "abcd");
  for (size_t size = 0; size < whole.size(); ++size) {
    Write(inside_ + "/cut", whole.substr(0, size));
    const absl::Status status = ReadW("cut").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr(folder_.path())));
  }
  Write(inside_ + "/huge", std::string(8, '\xff') + "{}");
  EXPECT_THAT(std::string(ReadW("huge").status().message()),
              HasSubstr("file: safetensors: header: expected at most 2"));
  std::filesystem::resize_file(inside_ + "/huge", 1 << 30);  // Without blocks on the disk.
  EXPECT_THAT(std::string(ReadW("huge").status().message()),
              HasSubstr(absl::StrCat("header: expected at most ", kMaxServedHeader)));
  Write(inside_ + "/other", FileOf(R"({"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "abcd"));
  EXPECT_EQ(ReadW("other").status(), absl::NotFoundError("file.tensor: safetensors: no tensor \"w\""));
}

TEST_F(TensorFilesTest, AFileThatBecomesShorterIsAnErrorNotASignal) {
  const absl::StatusOr<TensorFile> file = files_.OpenFile("a.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::StatusOr<SafetensorsEntry> entry = file->Find("");
  ASSERT_TRUE(entry.ok()) << entry.status();
  std::filesystem::resize_file(inside_ + "/a.safetensors", entry->begin + 1);
  std::byte bytes[4];
  EXPECT_EQ(file->Read(entry->begin, absl::MakeSpan(bytes)),
            absl::InvalidArgumentError("file: expected 3 more bytes, got the end of the file"));
}

}  // namespace
}  // namespace gemmd
