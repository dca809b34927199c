// SPDX-License-Identifier: Apache-2.0
// How long the front end's threads poll before they sleep. A futex wake of a core that sleeps costs 30 to 50 us on a
// virtual machine; a core that polls is one that nobody else has.
#ifndef GEMMD_SERVER_SPIN_TIMES_H_
#define GEMMD_SERVER_SPIN_TIMES_H_

#include <cstdint>

namespace gemmd {

// For one worker; 0: never.
struct SpinTimes {
  // The link's completion thread, after the latest completion while jobs are in flight.
  uint64_t completion_ns = 100'000;
  // A submitter that reads completions itself: as long as a tiny product and the wake of the worker take. It is a
  // thread that other requests could use, so no longer.
  uint64_t assist_ns = 50'000;
  // The thread that waits for the network (network_spin.h): after a job was submitted, and, for the client's next
  // request, after one was completed. A client in Python takes some 300 us to send it.
  uint64_t network_ns = 0;
};

// Of a process that may use so many cores. `spin_us`: the flag; -1: as the cores allow. On one core nobody polls, since
// the worker needs it. The network is polled only beside products on a GPU: a worker on the CPU computes on the cores.
SpinTimes SpinTimesFor(int spin_us, int cores, bool on_gpu);

}  // namespace gemmd

#endif  // GEMMD_SERVER_SPIN_TIMES_H_
