// SPDX-License-Identifier: Apache-2.0
// Which core a worker's loop has to itself. The loop and the thread that answers a call wait for each other by
// spinning. With many cores the kernel keeps them apart; with a few it now and then puts both on one, where each call
// then waits for the other's time slice (77 to 92 us instead of 46 to 60 for a small product on two cores).
#ifndef GEMMD_SERVER_CPU_PLACEMENT_H_
#define GEMMD_SERVER_CPU_PLACEMENT_H_

#include <optional>
#include <sched.h>

namespace gemmd {

// The last of two to four cores if there is one worker; none otherwise: with more cores, or one, there is nothing to
// arrange, and several workers must not share a core.
std::optional<int> LoopCpu(int workers, const cpu_set_t& allowed);

// The cores that this process may use, all of them if the kernel does not say.
cpu_set_t AllowedCpus();

// Without `cpu`.
cpu_set_t Except(cpu_set_t cpus, int cpu);

}  // namespace gemmd

#endif  // GEMMD_SERVER_CPU_PLACEMENT_H_
