// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/thread_pool.h"

#include "absl/synchronization/barrier.h"
#include "gtest/gtest.h"

#include <atomic>
#include <vector>

namespace gemmd {
namespace {

TEST(ThreadPoolTest, EveryIndexIsVisitedOnce) {
  ThreadPool pool(4);
  for (const int64_t count : {0, 1, 2, 3, 100, 1000}) {
    std::vector<int> visits(static_cast<size_t>(count));
    pool.ParallelFor(count, [&](int64_t index, int) { ++visits[static_cast<size_t>(index)]; });
    EXPECT_EQ(visits, std::vector<int>(static_cast<size_t>(count), 1));
  }
}

TEST(ThreadPoolTest, LoopsThatFollowEachOtherSeeEachOthersWrites) {
  ThreadPool pool(3);
  std::vector<int> values(64, 0);
  for (int round = 0; round < 500; ++round) {
    pool.ParallelFor(64, [&](int64_t index, int) { ++values[static_cast<size_t>(63 - index)]; });
  }
  EXPECT_EQ(values, std::vector<int>(64, 500));
}

TEST(ThreadPoolTest, SlotsOfCallsAtTheSameTimeDiffer) {
  ThreadPool pool(3);
  absl::Barrier* all_inside = new absl::Barrier(3);
  std::vector<std::atomic<int>> used(3);
  pool.ParallelFor(3, [&](int64_t, int slot) {
    ++used[static_cast<size_t>(slot)];
    if (all_inside->Block()) delete all_inside;
  });
  for (const std::atomic<int>& count : used) EXPECT_EQ(count.load(), 1);
}

TEST(ThreadPoolTest, OneThreadRunsOnTheCaller) {
  ThreadPool pool(1);
  const std::thread::id caller = std::this_thread::get_id();
  pool.ParallelFor(5, [&](int64_t, int slot) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(slot, 0);
  });
}

}  // namespace
}  // namespace gemmd
