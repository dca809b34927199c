// SPDX-License-Identifier: Apache-2.0
// gRPC's thread that waits for the network, polling instead of sleeping while there are jobs. A core that slept through
// a product of 200 us takes as long as half a round trip to wake for the next request. gRPC has no setting for that, so
// gemmd has an epoll_wait of its own, which gRPC calls in place of libc's (as programs have their own malloc): it looks
// without waiting while it is told to, and then waits as libc's does. Not in sanitized builds, which need theirs.
#ifndef GEMMD_SERVER_NETWORK_SPIN_H_
#define GEMMD_SERVER_NETWORK_SPIN_H_

#include <cstdint>
#include <sys/epoll.h>

namespace gemmd::network_spin {

// Whoever waits for the network polls until then (CLOCK_MONOTONIC; the latest time counts).
void KeepUntil(uint64_t monotonic_ns);

// As epoll_wait, which is this.
int EpollWait(int epoll, epoll_event* events, int most, int timeout_ms);

// For how long all threads together have polled in vain: not work, though it takes a core.
uint64_t SpunNanos();

}  // namespace gemmd::network_spin

#endif  // GEMMD_SERVER_NETWORK_SPIN_H_
