// SPDX-License-Identifier: Apache-2.0
#include "proto/cores.h"

#include <gtest/gtest.h>

#include <sched.h>
#include <unistd.h>

namespace gemmd {
namespace {

TEST(CoresTest, NoMoreThanTheAffinityMaskHas) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  EXPECT_GE(UsableCores(), 1);
  EXPECT_LE(UsableCores(), CPU_COUNT(&allowed));

  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(UsableCores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
}

TEST(CoresTest, NoMoreMemoryThanThereIs) {
  const auto physical = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  EXPECT_GT(UsableMemoryBytes(), 0u);
  EXPECT_LE(UsableMemoryBytes(), physical);
}

TEST(CoresTest, TheProcessorHasAName) { EXPECT_FALSE(ProcessorName().empty()); }

}  // namespace
}  // namespace gemmd
