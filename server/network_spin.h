// SPDX-License-Identifier: Apache-2.0
// gRPC's thread that waits for the network, polling instead of sleeping while there are jobs. A core that slept through
// a product of 200 us takes as long as half a round trip to wake for the next request. gRPC has no setting for that, so
// gemmd has an epoll_wait of its own, which gRPC calls in place of libc's (as programs have their own malloc): it looks
// without waiting while it is told to, and then waits as libc's does. Not under ThreadSanitizer, which has its own.
#ifndef GEMMD_SERVER_NETWORK_SPIN_H_
#define GEMMD_SERVER_NETWORK_SPIN_H_

#include <cstdint>
#include <sys/epoll.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GEMMD_OWN_EPOLL_WAIT 0
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define GEMMD_OWN_EPOLL_WAIT 0
#endif
#ifndef GEMMD_OWN_EPOLL_WAIT
#define GEMMD_OWN_EPOLL_WAIT 1
#endif

namespace gemmd::network_spin {

// Whoever waits for the network polls until then (CLOCK_MONOTONIC; the latest time counts).
void KeepUntil(uint64_t monotonic_ns);

// As epoll_wait, which is this where GEMMD_OWN_EPOLL_WAIT.
int EpollWait(int epoll, epoll_event* events, int most, int timeout_ms);

// For how long all threads together have looked and found nothing, up to now: not work, though it takes a core.
uint64_t SpunNanos();

}  // namespace gemmd::network_spin

#endif  // GEMMD_SERVER_NETWORK_SPIN_H_
