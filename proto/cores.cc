// SPDX-License-Identifier: Apache-2.0
#include "proto/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sched.h>
#include <unistd.h>

namespace gemmd {
namespace {

// The first line of /proc/self/cgroup for the unified hierarchy: "0::/path".
std::string UnifiedCgroup() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("0::", 0) == 0) return line.substr(3);
  }
  return "/";
}

// Two numbers of a control file; a missing one, or "max", is infinite.
struct Limits {
  double first = std::numeric_limits<double>::infinity();
  double second = std::numeric_limits<double>::infinity();
};

Limits ReadLimits(const std::string& path) {
  Limits limits;
  std::ifstream file(path);
  double value = 0;
  if (file >> value) limits.first = value;
  if (file >> value) limits.second = value;
  return limits;
}

// The least value of `read` over this process's cgroup and those that contain it.
template <typename Read>
double LeastOverCgroups(Read read) {
  std::string cgroup = UnifiedCgroup();
  double least = std::numeric_limits<double>::infinity();
  while (true) {
    least = std::min(least, read("/sys/fs/cgroup" + cgroup));
    const size_t slash = cgroup.rfind('/');
    if (slash == std::string::npos) return least;
    cgroup.resize(slash);
  }
}

double QuotaCores() {
  const double unified = LeastOverCgroups([](const std::string& cgroup) {
    const Limits quota = ReadLimits(cgroup + "/cpu.max");
    return std::isfinite(quota.first) && std::isfinite(quota.second) ? quota.first / quota.second : quota.first;
  });
  const double quota_us = ReadLimits("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").first;
  const double period_us = ReadLimits("/sys/fs/cgroup/cpu/cpu.cfs_period_us").first;
  if (quota_us > 0 && std::isfinite(quota_us) && std::isfinite(period_us)) {
    return std::min(unified, quota_us / period_us);
  }
  return unified;
}

}  // namespace

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Machines with more processors than a cpu_set_t holds refuse the call.
  const int allowed =
      sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const double quota = std::ceil(QuotaCores());
  const int cores = quota < static_cast<double>(allowed) ? static_cast<int>(quota) : allowed;
  return std::max(cores, 1);
}

uint64_t UsableMemoryBytes() {
  const auto physical = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const double unified =
      LeastOverCgroups([](const std::string& cgroup) { return ReadLimits(cgroup + "/memory.max").first; });
  const double limit = std::min(unified, ReadLimits("/sys/fs/cgroup/memory/memory.limit_in_bytes").first);
  return limit < static_cast<double>(physical) ? static_cast<uint64_t>(limit) : physical;
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

}  // namespace gemmd
