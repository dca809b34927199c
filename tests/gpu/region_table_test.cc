// SPDX-License-Identifier: Apache-2.0
#include "gpu/region_table.h"

#include "tests/gpu/fake_device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace gemmd {
namespace {

std::shared_ptr<DeviceMemory> Memory() { return std::make_shared<testing::HeapMemory>(64); }

TEST(RegionTableTest, FindsWhatWasAdded) {
  RegionTable table;
  EXPECT_TRUE(table.Add(5, Memory(), Access::kReadOnly));
  const RegionHit hit = table.Find(5);
  EXPECT_EQ(hit.rule, Rule::kNone);
  EXPECT_EQ(hit.access, Access::kReadOnly);
  EXPECT_EQ(hit.memory->byte_size(), 64u);
}

TEST(RegionTableTest, RefusesIdsInUseAndZero) {
  RegionTable table;
  EXPECT_FALSE(table.Add(0, Memory(), Access::kReadOnly));
  EXPECT_TRUE(table.Add(5, Memory(), Access::kReadOnly));
  EXPECT_FALSE(table.Add(5, Memory(), Access::kReadOnly));
}

TEST(RegionTableTest, ClosingAnUnusedRegionEndsItAtOnce) {
  RegionTable table;
  table.Add(5, Memory(), Access::kReadOnly);
  bool gone = false;
  EXPECT_TRUE(table.Close(5, [&] { gone = true; }));
  EXPECT_TRUE(gone);
  EXPECT_EQ(table.Find(5).rule, Rule::kUnknownRegion);
  EXPECT_FALSE(table.Close(5, nullptr));
  EXPECT_EQ(table.size(), 0u);
}

TEST(RegionTableTest, AHeldRegionStaysUntilItsLastHolderHasGone) {
  RegionTable table;
  std::weak_ptr<DeviceMemory> watch;
  {
    auto memory = Memory();
    watch = memory;
    table.Add(5, std::move(memory), Access::kReadWrite);
  }
  RegionHit first = table.Find(5);
  RegionHit second = table.Find(5);
  bool released_before_call = false;
  EXPECT_TRUE(table.Close(5, [&] { released_before_call = watch.expired(); }));
  first.memory.reset();
  EXPECT_EQ(table.Find(5).rule, Rule::kRegionClosed);
  EXPECT_FALSE(watch.expired());
  second.memory.reset();
  EXPECT_TRUE(released_before_call);
  EXPECT_EQ(table.Find(5).rule, Rule::kUnknownRegion);
}

TEST(RegionTableTest, ClosesWhileOthersLookUp) {
  RegionTable table;
  std::atomic<int> gone{0};
  constexpr int kRegions = 200;
  for (uint64_t id = 1; id <= kRegions; ++id) table.Add(id, Memory(), Access::kReadOnly);
  std::thread reader([&] {
    for (int round = 0; round < 20; ++round) {
      for (uint64_t id = 1; id <= kRegions; ++id) {
        const RegionHit hit = table.Find(id);
        EXPECT_EQ(hit.rule == Rule::kNone, hit.memory != nullptr);
      }
    }
  });
  for (uint64_t id = 1; id <= kRegions; ++id) EXPECT_TRUE(table.Close(id, [&] { ++gone; }));
  reader.join();
  EXPECT_EQ(gone, kRegions);
}

}  // namespace
}  // namespace gemmd
