// SPDX-License-Identifier: Apache-2.0
#include "server/cpu_placement.h"

namespace gemmd {

std::optional<int> LoopCpu(int workers, const cpu_set_t& allowed) {
  constexpr int kFewCores = 4;
  const int cores = CPU_COUNT(&allowed);
  if (workers != 1 || cores < 2 || cores > kFewCores) return std::nullopt;
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(last, &allowed)) --last;
  return last;
}

cpu_set_t AllowedCpus() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) CPU_SET(cpu, &allowed);
  }
  return allowed;
}

cpu_set_t Except(cpu_set_t cpus, int cpu) {
  CPU_CLR(cpu, &cpus);
  return cpus;
}

}  // namespace gemmd
