// SPDX-License-Identifier: Apache-2.0
#include "proto/gpu_memory.h"

#include <sys/stat.h>
#include <unistd.h>

namespace gemmd {

uint64_t PidNamespace() {
  struct stat status {};
  return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

absl::Status SamePidNumber() {
  return absl::FailedPreconditionError(
      "ipc: the client and this worker have the same process number in different PID namespaces, and CUDA takes the "
      "client's memory for the worker's own; share a descriptor (region kind device), use a pool, or let both run in "
      "one PID namespace");
}

// CUDA tells processes apart by their numbers, whatever namespace those are of.
absl::Status CheckOwner(const IpcMemory& ipc) {
  if (ipc.pid != getpid() || ipc.pid_namespace == 0) return absl::OkStatus();
  const uint64_t own = PidNamespace();
  return own == 0 || own == ipc.pid_namespace ? absl::OkStatus() : SamePidNumber();
}

}  // namespace gemmd
