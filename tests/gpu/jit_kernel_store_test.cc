// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/kernel_store.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace gemmd {
namespace {

namespace fs = std::filesystem;

class KernelStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = absl::StrCat(::testing::TempDir(), "/kernel_store_",
                              ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  KernelStore Open(uint64_t byte_limit = 1 << 20) { return *KernelStore::Open(directory_, byte_limit); }

  static KernelKey Key(int number) { return {absl::StrCat("kernel", number), "sm_90a", "NVRTC 13.0", {1, 2}}; }

  std::string OnlyFile() const { return fs::directory_iterator(directory_)->path(); }

  int FileCount() const {
    return static_cast<int>(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()));
  }

  std::string directory_;
};

TEST_F(KernelStoreTest, GivesBackWhatWasSaved) {
  const KernelStore store = Open();
  ASSERT_TRUE(store.Save(Key(1), {"symbol", std::string("cu\0bin", 6)}).ok());
  const auto kernel = Open().Load(Key(1));
  ASSERT_TRUE(kernel.has_value());
  EXPECT_EQ(kernel->symbol, "symbol");
  EXPECT_EQ(kernel->cubin, std::string("cu\0bin", 6));
}

TEST_F(KernelStoreTest, WhatAKilledProcessLeftIsRemovedAnHourLater) {
  Open();
  const std::string old = directory_ + "/writing.abcdef", young = directory_ + "/writing.ghijkl";
  for (const std::string& path : {old, young}) std::ofstream(path) << "half a kernel";
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::minutes(61));
  Open();
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(young)) << "another process may be writing it";
}

TEST_F(KernelStoreTest, AKeyThatDiffersInAnythingIsAMiss) {
  const KernelStore store = Open();
  ASSERT_TRUE(store.Save(Key(1), {"symbol", "cubin"}).ok());
  KernelKey arch = Key(1), compiler = Key(1), sources = Key(1);
  arch.arch = "sm_100a";
  compiler.compiler = "NVRTC 13.1";
  sources.sources.low = 3;
  EXPECT_FALSE(store.Load(Key(2)).has_value());
  EXPECT_FALSE(store.Load(arch).has_value());
  EXPECT_FALSE(store.Load(compiler).has_value());
  EXPECT_FALSE(store.Load(sources).has_value());
}

TEST_F(KernelStoreTest, ADamagedFileIsAMissAndIsRemoved) {
  const KernelStore store = Open();
  for (const int64_t damaged_byte : {0, 9, 30, 60}) {
    ASSERT_TRUE(store.Save(Key(1), {"symbol", std::string(100, 'c')}).ok());
    {
      std::fstream file(OnlyFile(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(damaged_byte);
      file.put('\x7f');
    }
    EXPECT_FALSE(store.Load(Key(1)).has_value()) << damaged_byte;
    EXPECT_EQ(FileCount(), 0) << damaged_byte;
  }
}

TEST_F(KernelStoreTest, ATruncatedFileIsAMiss) {
  const KernelStore store = Open();
  for (const uintmax_t size : {0u, 10u, 56u, 100u}) {
    ASSERT_TRUE(store.Save(Key(1), {"symbol", std::string(100, 'c')}).ok());
    fs::resize_file(OnlyFile(), size);
    EXPECT_FALSE(store.Load(Key(1)).has_value()) << size;
  }
}

TEST_F(KernelStoreTest, AFileUnderAnotherKeysNameIsAMiss) {
  const KernelStore store = Open();
  ASSERT_TRUE(store.Save(Key(1), {"symbol", "cubin"}).ok());
  fs::rename(OnlyFile(), absl::StrCat(directory_, "/", Key(2).digest().Hex(), ".kernel"));
  EXPECT_FALSE(store.Load(Key(2)).has_value());
}

TEST_F(KernelStoreTest, WhatWasNotUsedForLongestGoesFirst) {
  const KernelStore store = Open(2500);  // Room for two.
  const auto age = [&](int number, int hours) {
    const std::string path = absl::StrCat(directory_, "/", Key(number).digest().Hex(), ".kernel");
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(hours));
  };
  ASSERT_TRUE(store.Save(Key(1), {"symbol", std::string(1000, 'c')}).ok());
  age(1, 3);
  ASSERT_TRUE(store.Save(Key(2), {"symbol", std::string(1000, 'c')}).ok());
  age(2, 2);
  ASSERT_TRUE(store.Load(Key(1)).has_value());  // Used just now.
  const absl::StatusOr<uint64_t> removed = store.Save(Key(3), {"symbol", std::string(1000, 'c')});
  ASSERT_TRUE(removed.ok());
  EXPECT_EQ(*removed, 1u);
  EXPECT_TRUE(store.Load(Key(1)).has_value());
  EXPECT_FALSE(store.Load(Key(2)).has_value());
  EXPECT_TRUE(store.Load(Key(3)).has_value());
}

TEST_F(KernelStoreTest, AFolderThatCannotBeMadeIsAnError) {
  EXPECT_FALSE(KernelStore::Open("/proc/nothing/here", 1).ok());
}

}  // namespace
}  // namespace gemmd
