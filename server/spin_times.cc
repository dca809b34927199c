// SPDX-License-Identifier: Apache-2.0
#include "server/spin_times.h"

#include <algorithm>

namespace gemmd {
namespace {

// Where a core more or less does not matter, threads poll as long as a large product on a GPU takes.
constexpr int kManyCores = 8;
constexpr uint64_t kPatientSpinNanos = 500'000;

}  // namespace

SpinTimes SpinTimesFor(int spin_us, int cores, bool on_gpu) {
  SpinTimes times;
  if (cores < 2 || spin_us == 0) {
    times.completion_ns = times.assist_ns = 0;
    return times;
  }
  if (spin_us < 0 && cores < kManyCores) return times;
  times.completion_ns = spin_us < 0 ? kPatientSpinNanos : static_cast<uint64_t>(spin_us) * 1000;
  times.assist_ns = std::min(times.assist_ns, times.completion_ns);
  if (on_gpu) times.network_ns = times.completion_ns;
  return times;
}

}  // namespace gemmd
