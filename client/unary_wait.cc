// SPDX-License-Identifier: Apache-2.0
#include "client/unary_wait.h"

#include "proto/cores.h"
#include "proto/job_ring.h"

#include <grpc/support/time.h>

#include <algorithm>
#include <atomic>
#include <chrono>

namespace gemmd {
namespace {

constexpr int kManyCores = 8;
constexpr absl::Duration kPatientSpin = absl::Microseconds(500);

int Cores() {
  static const int cores = UsableCores();
  return cores;
}

// Threads of this process that poll now.
std::atomic<int> polling{0};

class PollingSlot {
 public:
  PollingSlot() : taken_(polling.fetch_add(1, std::memory_order_relaxed) < std::max(Cores() / 4, 1)) {}
  ~PollingSlot() { polling.fetch_sub(1, std::memory_order_relaxed); }
  PollingSlot(const PollingSlot&) = delete;
  PollingSlot& operator=(const PollingSlot&) = delete;
  bool taken() const { return taken_; }

 private:
  const bool taken_;
};

using Clock = std::chrono::steady_clock;

// Whether the operation came while it polled, and then how it went.
std::optional<bool> Poll(grpc::CompletionQueue& queue, absl::Duration spin) {
  const PollingSlot slot;
  if (!slot.taken()) return std::nullopt;
  const gpr_timespec past = gpr_inf_past(GPR_CLOCK_MONOTONIC);  // A look at the socket, no wait.
  const auto most = absl::ToChronoNanoseconds(spin);            // May be as long as there are numbers.
  const Clock::time_point begin = Clock::now();
  void* tag = nullptr;
  bool ok = false;
  do {
    if (queue.AsyncNext(&tag, &ok, past) == grpc::CompletionQueue::GOT_EVENT) return ok;
    PauseBetweenLooks();
  } while (Clock::now() - begin < most);
  return std::nullopt;
}

}  // namespace

absl::Duration DefaultSpin() { return Cores() >= kManyCores ? kPatientSpin : absl::ZeroDuration(); }

bool AwaitCall(grpc::CompletionQueue& queue, std::optional<absl::Duration> spin) {
  const absl::Duration patience = spin.value_or(DefaultSpin());
  std::optional<bool> outcome;
  if (patience > absl::ZeroDuration()) outcome = Poll(queue, patience);
  void* tag = nullptr;
  bool ok = false;
  if (!outcome) outcome = queue.Next(&tag, &ok) && ok;
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return *outcome;
}

}  // namespace gemmd
