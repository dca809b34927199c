// SPDX-License-Identifier: Apache-2.0
// When a worker that died is started again: at once the first time, then with growing pauses, and not at all once it
// dies too often. Pure: the supervisor passes time in. Not thread-safe.
#ifndef GEMMD_SERVER_RESTART_POLICY_H_
#define GEMMD_SERVER_RESTART_POLICY_H_

#include <cstdint>
#include <deque>

namespace gemmd {

struct RestartLimits {
  int max_deaths = 5;  // Within the window: more is a crash loop, not an accident.
  uint64_t window_ns = 60'000'000'000;
  uint64_t first_backoff_ns = 100'000'000;  // Before the second restart within the window; doubles from there.
  uint64_t max_backoff_ns = 5'000'000'000;  // A GPU that comes back is used again within seconds.
};

struct RestartDecision {
  bool quarantine = false;
  uint64_t restart_at_ns = 0;  // Unless quarantined.
};

class RestartPolicy {
 public:
  explicit RestartPolicy(RestartLimits limits) : limits_(limits) {}

  // A worker process ended at `now_ns`; `exit_status` is what it exited with, or negative if a signal ended it.
  RestartDecision OnDeath(uint64_t now_ns, int exit_status);

 private:
  const RestartLimits limits_;
  std::deque<uint64_t> deaths_;  // Within the window.
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_RESTART_POLICY_H_
