// SPDX-License-Identifier: Apache-2.0
#include "server/staging_arena.h"

#include "tests/server/fake_worker_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr uint64_t kArenaBytes = 1 << 20;

class StagingArenaTest : public testing::Test {
 protected:
  FakeWorkerPool pool_;
  std::unique_ptr<StagingArena> arena_ = *StagingArena::Create(kArenaBytes, pool_);
};

TEST_F(StagingArenaTest, LeaseIsSharedWithTheWorkers) {
  const auto lease = arena_->Allocate(100);
  ASSERT_TRUE(lease.ok()) << lease.status();
  std::memcpy(lease->data(), "hello", 5);
  const std::byte* bytes = pool_.Bytes(lease->region_id(), lease->offset(), lease->byte_size());
  ASSERT_NE(bytes, nullptr);
  EXPECT_EQ(std::memcmp(bytes, "hello", 5), 0);
}

TEST_F(StagingArenaTest, FullArenaIsRefusedAtOnce) {
  auto whole = arena_->Allocate(kArenaBytes);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_TRUE(absl::IsResourceExhausted(arena_->Allocate(1).status()));
  *whole = ArenaLease();
  EXPECT_TRUE(arena_->Allocate(1).ok());
}

TEST_F(StagingArenaTest, MoreThanTheArenaIsRefused) {
  EXPECT_TRUE(absl::IsResourceExhausted(arena_->Allocate(kArenaBytes + 1).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(arena_->Allocate(~uint64_t{0}).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(arena_->Allocate(~uint64_t{0} - 4096).status()));
}

TEST_F(StagingArenaTest, EmptyLeasesAreDistinct) {
  const auto first = arena_->Allocate(0);
  const auto second = arena_->Allocate(0);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->offset(), second->offset());
}

TEST_F(StagingArenaTest, SmallBlocksDoNotKeepLargeOnesOut) {
  {
    std::vector<ArenaLease> leases;
    for (int i = 0; i < 200; ++i) leases.push_back(*arena_->Allocate(64u << (i % 6)));
  }
  EXPECT_TRUE(arena_->Allocate(kArenaBytes).ok());
}

TEST_F(StagingArenaTest, MovedLeaseIsGivenBackOnce) {
  {
    ArenaLease lease = *arena_->Allocate(1000);
    ArenaLease moved = std::move(lease);
    EXPECT_FALSE(lease.valid());  // NOLINT: what a moved-from lease is, is the point.
    EXPECT_EQ(arena_->bytes_in_use(), 1024u);
  }
  EXPECT_EQ(arena_->bytes_in_use(), 0u);
}

TEST_F(StagingArenaTest, LeaseOutlivesTheArena) {
  ArenaLease lease = *arena_->Allocate(1000);
  arena_.reset();
  std::memset(lease.data(), 1, lease.byte_size());
}

TEST_F(StagingArenaTest, RandomLeasesNeverOverlap) {
  constexpr uint32_t kSeed = 20240607;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::vector<ArenaLease> leases;
  std::map<uint64_t, uint64_t> taken;  // Offset to end.
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0 && !leases.empty()) {
      std::swap(leases[random() % leases.size()], leases.back());
      taken.erase(leases.back().offset());
      leases.pop_back();
      continue;
    }
    auto lease = arena_->Allocate(random() % (uint64_t{1} << (random() % 19)));
    if (!lease.ok()) continue;
    ASSERT_EQ(lease->offset() % 64, 0u);
    const uint64_t end = lease->offset() + lease->byte_size();
    ASSERT_LE(end, kArenaBytes);
    const auto next = taken.lower_bound(lease->offset());
    ASSERT_TRUE(next == taken.end() || end <= next->first);
    ASSERT_TRUE(next == taken.begin() || std::prev(next)->second <= lease->offset());
    taken.emplace(lease->offset(), end);
    leases.push_back(*std::move(lease));
  }
  leases.clear();
  EXPECT_EQ(arena_->bytes_in_use(), 0u);
  EXPECT_TRUE(arena_->Allocate(kArenaBytes).ok());
}

TEST_F(StagingArenaTest, ThreadsDoNotShareBlocks) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([this, thread] {
      std::mt19937 random(static_cast<uint32_t>(thread));
      for (int step = 0; step < 2000; ++step) {
        auto lease = arena_->Allocate(1 + random() % 100'000);
        if (!lease.ok()) continue;
        std::memset(lease->data(), thread, lease->byte_size());
        for (uint64_t i = 0; i < lease->byte_size(); i += 997) ASSERT_EQ(static_cast<int>(lease->data()[i]), thread);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena_->bytes_in_use(), 0u);
}

TEST(StagingArenaCreateTest, FailureOfThePoolIsReported) {
  FakeWorkerPool pool;
  pool.FailNextControl(absl::ResourceExhaustedError("scripted"));
  EXPECT_TRUE(absl::IsResourceExhausted(StagingArena::Create(4096, pool).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(StagingArena::Create(0, pool).status()));
}

}  // namespace
}  // namespace gemmd
