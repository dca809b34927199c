// SPDX-License-Identifier: Apache-2.0
#include "server/cpu_placement.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <optional>

namespace gemmd {
namespace {

cpu_set_t Cpus(std::initializer_list<int> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  return set;
}

TEST(LoopCpuTest, IsTheLastOfAFew) {
  EXPECT_EQ(LoopCpu(1, Cpus({0, 1})), 1);
  EXPECT_EQ(LoopCpu(1, Cpus({3, 5, 9})), 9);
  EXPECT_EQ(LoopCpu(1, Cpus({0, 1, 2, 3})), 3);
}

TEST(LoopCpuTest, IsLeftToTheKernelOtherwise) {
  EXPECT_EQ(LoopCpu(1, Cpus({0})), std::nullopt);
  EXPECT_EQ(LoopCpu(1, Cpus({0, 1, 2, 3, 4})), std::nullopt);
  EXPECT_EQ(LoopCpu(2, Cpus({0, 1})), std::nullopt);
  EXPECT_EQ(LoopCpu(0, Cpus({0, 1})), std::nullopt);
}

TEST(ExceptTest, TakesOneAway) {
  const cpu_set_t left = Except(Cpus({0, 1}), 1);
  EXPECT_TRUE(CPU_ISSET(0, &left));
  EXPECT_EQ(CPU_COUNT(&left), 1);
}

TEST(AllowedCpusTest, HasTheOneThisRunsOn) {
  const cpu_set_t allowed = AllowedCpus();
  EXPECT_TRUE(CPU_ISSET(sched_getcpu(), &allowed));
}

}  // namespace
}  // namespace gemmd
