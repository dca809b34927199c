// SPDX-License-Identifier: Apache-2.0
// What the machine lets a process use: the daemon, its workers and clients decide by it who may spin and how many
// threads compute. Reads files of the kernel each time: for starts, not for requests.
#ifndef GEMMD_PROTO_CORES_H_
#define GEMMD_PROTO_CORES_H_

#include <cstdint>
#include <string>

namespace gemmd {

// Processors that this process may use: those of its affinity mask, but no more than its CPU quota (cgroup, rounded
// up). At least 1.
int UsableCores();

// Bytes of memory: physical, or the cgroup's limit where that is less.
uint64_t UsableMemoryBytes();

// The model name of /proc/cpuinfo, or "CPU".
std::string ProcessorName();

}  // namespace gemmd

#endif  // GEMMD_PROTO_CORES_H_
