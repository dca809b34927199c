// SPDX-License-Identifier: Apache-2.0
// What the build of Abseil decides and a program need not accept.
#ifndef GEMMD_PROTO_LOCK_CHECKS_H_
#define GEMMD_PROTO_LOCK_CHECKS_H_

#include "absl/synchronization/mutex.h"

namespace gemmd {

// Distributions build Abseil without NDEBUG, so that absl::Mutex keeps a graph of who locks what in which order: a
// tenth of all that gRPC does for a call. A release build's programs do without it; other builds, which are tested,
// keep it. First thing in main.
inline void DropLockOrderChecks() {
#ifdef NDEBUG
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
}

}  // namespace gemmd

#endif  // GEMMD_PROTO_LOCK_CHECKS_H_
