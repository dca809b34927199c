// SPDX-License-Identifier: Apache-2.0
// When a worker that died is started again: at once the first time, then with growing pauses, and not at all once it
// dies too often. Pure: the supervisor passes time in. Not thread-safe.
#ifndef GEMMD_SERVER_RESTART_POLICY_H_
#define GEMMD_SERVER_RESTART_POLICY_H_

#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <deque>

namespace gemmd {

// How the predecessor of a worker process ended.
enum class RestartReason : uint8_t {
  kDeviceFault = 0,    // It said that its device is beyond repair.
  kProtocolError = 1,  // It said that the front end broke the protocol.
  kHang = 2,           // Killed: it finished no job, or closed its socket and went on.
  kStartTimeout = 3,   // Killed: it was not ready in time.
  kSignal = 4,         // A signal ended it that was not ours.
  kExit = 5,           // Any other exit, or it could not be started.
};
inline constexpr size_t kRestartReasonCount = 6;

absl::string_view Name(RestartReason reason);

// Of a process that was not killed by us; `exit_status` as in OnDeath.
RestartReason RestartReasonOf(int exit_status);

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
