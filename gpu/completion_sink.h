// SPDX-License-Identifier: Apache-2.0
// The worker's end of one completion ring. Whoever finishes a job (the loop, or a thread of the device) writes here; a
// reader that is behind makes a backlog, so that no writer blocks and no completion is lost.
#ifndef GEMMD_GPU_COMPLETION_SINK_H_
#define GEMMD_GPU_COMPLETION_SINK_H_

#include "proto/job_ring.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <deque>

namespace gemmd {

// Thread-safe. The backlog is bounded by its owner, who takes no further jobs while there is one.
class CompletionSink {
 public:
  explicit CompletionSink(const JobRing& ring) : writer_(ring.completions(), ring.completion_slots(), ring.slots()) {}

  void Write(const JobCompletion& completion);

  // Moves what fits from the backlog to the ring.
  void Flush();

  bool has_backlog() const { return has_backlog_.load(std::memory_order_acquire); }

 private:
  void FlushLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  CompletionWriter writer_ ABSL_GUARDED_BY(mutex_);
  std::deque<JobCompletion> backlog_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> has_backlog_{false};
};

}  // namespace gemmd

#endif  // GEMMD_GPU_COMPLETION_SINK_H_
