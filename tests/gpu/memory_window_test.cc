// SPDX-License-Identifier: Apache-2.0
#include "gpu/memory_window.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace gemmd {
namespace {

Operand MakeWindow(uint64_t offset, int64_t rows, int64_t columns, int64_t pitch) {
  Operand operand;
  operand.region = 1;
  operand.offset = offset;
  operand.dtype = DType::kU8;
  operand.rank = 2;
  operand.shape = {rows, columns, 0};
  operand.strides = {pitch, 1, 0};
  return operand;
}

std::set<uint64_t> BytesOf(const Operand& operand) {
  std::set<uint64_t> bytes;
  for (int64_t i = 0; i < operand.shape[0]; ++i) {
    for (int64_t j = 0; j < operand.shape[1]; ++j) {
      bytes.insert(operand.offset + static_cast<uint64_t>(i * operand.strides[0] + j));
    }
  }
  return bytes;
}

TEST(MemoryWindowTest, EmptyWindowsOverlapNothing) {
  EXPECT_FALSE(Overlap(WindowOf(MakeWindow(0, 0, 8, 8)), WindowOf(MakeWindow(0, 8, 8, 8))));
}

TEST(MemoryWindowTest, WindowsOfDifferentRegionsDoNotOverlap) {
  Operand other = MakeWindow(0, 8, 8, 8);
  other.region = 2;
  EXPECT_FALSE(Overlap(WindowOf(MakeWindow(0, 8, 8, 8)), WindowOf(other)));
}

TEST(MemoryWindowTest, InterleavedWindowsOfDifferentPitchesCountAsOverlapping) {
  EXPECT_TRUE(Overlap(WindowOf(MakeWindow(0, 4, 2, 32)), WindowOf(MakeWindow(8, 4, 2, 64))));
}

TEST(MemoryWindowTest, AgreesWithBytesWhereThePitchIsCommon) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 5000; ++i) {
    const auto pitch = static_cast<int64_t>(random() % 12 + 1);
    const auto pick = [&] {
      const auto columns = static_cast<int64_t>(random()) & 0xff;
      return MakeWindow(random() % 60, static_cast<int64_t>(random() % 4), columns % pitch + 1, pitch);
    };
    const Operand a = pick();
    const Operand b = pick();
    bool share = false;
    for (const uint64_t byte : BytesOf(a)) share = share || BytesOf(b).contains(byte);
    // Exact but where the rows that would meet do not exist: then it may only say more.
    if (share) {
      EXPECT_TRUE(Overlap(WindowOf(a), WindowOf(b)));
    }
    EXPECT_EQ(Overlap(WindowOf(a), WindowOf(b)), Overlap(WindowOf(b), WindowOf(a)));
  }
}

}  // namespace
}  // namespace gemmd
