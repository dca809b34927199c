// SPDX-License-Identifier: Apache-2.0
#include "server/network_spin.h"

#include "proto/job_ring.h"

#include <atomic>
#include <cstddef>
#include <sys/syscall.h>
#include <unistd.h>

namespace gemmd::network_spin {
namespace {

constexpr uint64_t kNanosPerMilli = 1'000'000;

std::atomic<uint64_t> until_ns{0};
std::atomic<uint64_t> spun_ns{0};

int Wait(int epoll, epoll_event* events, int most, int timeout_ms) {
  constexpr size_t kKernelSignalBytes = 8;
  return static_cast<int>(syscall(SYS_epoll_pwait, epoll, events, most, timeout_ms, nullptr, kKernelSignalBytes));
}

}  // namespace

void KeepUntil(uint64_t monotonic_ns) {
  uint64_t now = until_ns.load(std::memory_order_relaxed);
  while (now < monotonic_ns && !until_ns.compare_exchange_weak(now, monotonic_ns, std::memory_order_relaxed)) {
  }
}

uint64_t SpunNanos() { return spun_ns.load(std::memory_order_relaxed); }

int EpollWait(int epoll, epoll_event* events, int most, int timeout_ms) {
  const uint64_t begin_ns = MonotonicNanos();
  if (timeout_ms == 0 || until_ns.load(std::memory_order_relaxed) <= begin_ns)
    return Wait(epoll, events, most, timeout_ms);
  const uint64_t end_ns = timeout_ms < 0 ? UINT64_MAX : begin_ns + static_cast<uint64_t>(timeout_ms) * kNanosPerMilli;
  int ready = 0;
  uint64_t now_ns = begin_ns;
  do {
    const uint64_t looked_ns = now_ns;
    PauseBetweenLooks();
    ready = Wait(epoll, events, most, 0);
    now_ns = MonotonicNanos();
    if (ready == 0) spun_ns.fetch_add(now_ns - looked_ns, std::memory_order_relaxed);
  } while (ready == 0 && now_ns < end_ns && now_ns < until_ns.load(std::memory_order_relaxed));
  if (ready != 0 || now_ns >= end_ns) return ready;
  const int left_ms = timeout_ms < 0 ? timeout_ms : timeout_ms - static_cast<int>((now_ns - begin_ns) / kNanosPerMilli);
  return Wait(epoll, events, most, left_ms);
}

}  // namespace gemmd::network_spin

#if GEMMD_OWN_EPOLL_WAIT
// NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name): libc's begin with underscores.
extern "C" __attribute__((visibility("default"))) int epoll_wait(int epoll, epoll_event* events, int most,
                                                                 int timeout_ms) {
  return gemmd::network_spin::EpollWait(epoll, events, most, timeout_ms);
}
#endif
