// SPDX-License-Identifier: Apache-2.0
#include "proto/gpu_memory.h"

#include <sys/stat.h>

namespace gemmd {

uint64_t PidNamespace() {
  struct stat status {};
  return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

}  // namespace gemmd
