// SPDX-License-Identifier: Apache-2.0
#include "server/drain_gate.h"

#include "absl/status/status.h"

namespace gemmd {

absl::StatusOr<DrainGate::Pass> DrainGate::Enter() {
  absl::MutexLock lock(&mutex_);
  if (closed_) return absl::UnavailableError("the server is draining");
  ++passes_;
  return Pass(this);
}

void DrainGate::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

bool DrainGate::WaitEmpty(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(
                                     +[](uint64_t* passes) { return *passes == 0; }, &passes_),
                                 timeout);
}

uint64_t DrainGate::passes() const {
  absl::MutexLock lock(&mutex_);
  return passes_;
}

void DrainGate::Leave() {
  absl::MutexLock lock(&mutex_);
  --passes_;
}

}  // namespace gemmd
