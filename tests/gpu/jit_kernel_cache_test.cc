// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/kernel_cache.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

KernelKey Key(int number) { return {absl::StrCat("kernel", number), "sm_90a", "test", {}}; }

TEST(KernelCacheTest, AKernelIsCompiledOnceHoweverManyAsk) {
  std::atomic<int> compiles = 0;
  constexpr int kThreads = 8;
  absl::BlockingCounter started(kThreads);
  KernelCache cache(
      [&](const KernelKey& key) -> absl::StatusOr<CompiledKernel> {
        started.Wait();  // Nobody finishes before everybody has asked, or is about to.
        ++compiles;
        return CompiledKernel{key.expression, "cubin"};
      },
      std::nullopt, {});
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      started.DecrementCount();
      EXPECT_EQ((*cache.Get(Key(1)))->symbol, "kernel1");
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(compiles, 1);
}

TEST(KernelCacheTest, FindDoesNotWaitAndHasTheKernelMadeInTheBackground) {
  absl::Notification may_finish;
  KernelCache cache(
      [&](const KernelKey& key) -> absl::StatusOr<CompiledKernel> {
        may_finish.WaitForNotification();
        return CompiledKernel{key.expression, "cubin"};
      },
      std::nullopt, {});
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  may_finish.Notify();
  EXPECT_TRUE(cache.Get(Key(1)).ok());
  EXPECT_NE(cache.Find(Key(1)), nullptr);
  EXPECT_EQ(cache.counts().compiles, 1u);
}

TEST(KernelCacheTest, CompilesAndKernelsAreCounted) {
  const WorkerCounters counters = *WorkerCounters::Create();
  KernelCache cache(
      [](const KernelKey& key) -> absl::StatusOr<CompiledKernel> {
        if (key == Key(2)) return absl::InternalError("no such type");
        return CompiledKernel{key.expression, "cubin"};
      },
      std::nullopt, {.counters = &counters});
  EXPECT_TRUE(cache.Get(Key(1)).ok());
  EXPECT_FALSE(cache.Get(Key(2)).ok());
  EXPECT_TRUE(cache.Get(Key(1)).ok());
  const WorkerCounts counts = counters.ReadCounts();
  EXPECT_EQ(counts.compiles_ok, 1u);
  EXPECT_EQ(counts.compiles_failed, 1u);
  EXPECT_EQ(counts.kernel_loads, 0u);
  uint64_t observed = 0;
  for (const uint64_t bucket : counts.compile_duration.buckets) observed += bucket;
  EXPECT_EQ(observed, 2u);
  EXPECT_EQ(counters.ReadGauges().kernels, 1u);
  EXPECT_EQ(counters.ReadGauges().kernel_bytes, 5u);
  EXPECT_EQ(counters.ReadGauges().compiles_waiting, 0u);
}

TEST(KernelCacheTest, AWaitingRequestOvertakesTheBackgroundQueue) {
  absl::Notification may_finish;
  KernelCache cache(
      [&](const KernelKey& key) -> absl::StatusOr<CompiledKernel> {
        if (key.expression != "kernel3") may_finish.WaitForNotification();
        return CompiledKernel{key.expression, "cubin"};
      },
      std::nullopt, {.threads = 1});
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(cache.Find(Key(i)), nullptr);
  EXPECT_TRUE(cache.Get(Key(3)).ok());  // While the only thread hangs in kernel1.
  may_finish.Notify();
}

TEST(KernelCacheTest, AFailedCompileIsReportedAndNotRepeated) {
  KernelCache cache([](const KernelKey&) { return absl::InternalError("no such type"); }, std::nullopt, {});
  EXPECT_EQ(cache.Get(Key(1)).status().message(), "no such type");
  EXPECT_EQ(cache.Get(Key(1)).status().message(), "no such type");
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  EXPECT_EQ(cache.counts().compiles, 1u);
  EXPECT_EQ(cache.counts().failures, 1u);
}

TEST(KernelCacheTest, AFullBackgroundQueueDropsTheRequest) {
  absl::Notification may_finish;
  std::atomic<int> compiles = 0;
  KernelCache cache(
      [&](const KernelKey& key) -> absl::StatusOr<CompiledKernel> {
        ++compiles;
        may_finish.WaitForNotification();
        return CompiledKernel{key.expression, "cubin"};
      },
      std::nullopt, {.threads = 0, .queue_limit = 2});
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(cache.Find(Key(i)), nullptr);
  may_finish.Notify();
  EXPECT_TRUE(cache.Get(Key(3)).ok());
  EXPECT_EQ(compiles, 1);
}

TEST(KernelCacheTest, AnotherProcessFindsTheKernelOnDisk) {
  const std::string directory = absl::StrCat(::testing::TempDir(), "/kernel_cache_test_disk");
  const auto compile = [](const KernelKey& key) -> absl::StatusOr<CompiledKernel> {
    return CompiledKernel{key.expression, "cubin"};
  };
  {
    KernelCache cache(compile, *KernelStore::Open(directory, 1 << 20), {});
    ASSERT_TRUE(cache.Get(Key(1)).ok());
  }
  KernelCache cache(compile, *KernelStore::Open(directory, 1 << 20), {});
  EXPECT_EQ((*cache.Get(Key(1)))->cubin, "cubin");
  EXPECT_EQ(cache.counts().disk_hits, 1u);
  EXPECT_EQ(cache.counts().compiles, 0u);
}

}  // namespace
}  // namespace gemmd
