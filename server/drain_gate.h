// SPDX-License-Identifier: Apache-2.0
// Counts the requests that were accepted and not yet answered, and closes when the daemon drains. Every service that
// does work takes a pass per request; main closes the gate and waits until it is empty.
#ifndef GEMMD_SERVER_DRAIN_GATE_H_
#define GEMMD_SERVER_DRAIN_GATE_H_

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include <cstdint>
#include <utility>

namespace gemmd {

// Thread-safe. Outlives its passes.
class DrainGate {
 public:
  // One accepted request; gives its place back on destruction. Move-only.
  class Pass {
   public:
    Pass() = default;
    Pass(Pass&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Pass& operator=(Pass&& other) noexcept {
      std::swap(gate_, other.gate_);
      return *this;
    }
    ~Pass() {
      if (gate_ != nullptr) gate_->Leave();
    }

   private:
    friend class DrainGate;
    explicit Pass(DrainGate* gate) : gate_(gate) {}
    DrainGate* gate_ = nullptr;
  };

  // Errors: UNAVAILABLE once the gate is closed.
  absl::StatusOr<Pass> Enter();

  void Close();

  // Waits until no pass is out; false if `timeout` passes first.
  bool WaitEmpty(absl::Duration timeout);

  uint64_t passes() const;

 private:
  void Leave();

  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t passes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_DRAIN_GATE_H_
