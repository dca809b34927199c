// SPDX-License-Identifier: Apache-2.0
#include "server/restart_policy.h"

#include "proto/control.h"

#include <algorithm>

namespace gemmd {

absl::string_view Name(RestartReason reason) {
  switch (reason) {
    case RestartReason::kDeviceFault:
      return "device_fault";
    case RestartReason::kProtocolError:
      return "protocol_error";
    case RestartReason::kHang:
      return "hang";
    case RestartReason::kStartTimeout:
      return "start_timeout";
    case RestartReason::kSignal:
      return "signal";
    case RestartReason::kExit:
      return "exit";
  }
  return "invalid";
}

RestartReason RestartReasonOf(int exit_status) {
  if (exit_status == kExitDeviceFault) return RestartReason::kDeviceFault;
  if (exit_status == kExitProtocolError) return RestartReason::kProtocolError;
  return exit_status < 0 ? RestartReason::kSignal : RestartReason::kExit;
}

RestartDecision RestartPolicy::OnDeath(uint64_t now_ns, int exit_status) {
  if (exit_status == kExitNoDevice) return {.quarantine = true};
  while (!deaths_.empty() && now_ns - deaths_.front() >= limits_.window_ns) deaths_.pop_front();
  deaths_.push_back(now_ns);
  const int count = static_cast<int>(deaths_.size());
  if (count >= limits_.max_deaths) return {.quarantine = true};
  uint64_t backoff = 0;
  if (count > 1) backoff = limits_.first_backoff_ns;
  for (int i = 2; i < count; ++i) backoff = std::min(backoff * 2, limits_.max_backoff_ns);
  return {.restart_at_ns = now_ns + backoff};
}

}  // namespace gemmd
