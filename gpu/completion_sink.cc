// SPDX-License-Identifier: Apache-2.0
#include "gpu/completion_sink.h"

namespace gemmd {

void CompletionSink::Write(const JobCompletion& completion) {
  absl::MutexLock lock(&mutex_);
  if (!backlog_.empty()) FlushLocked();
  if (backlog_.empty() && writer_.Write(completion)) return;
  backlog_.push_back(completion);
  has_backlog_.store(true, std::memory_order_release);
}

void CompletionSink::Flush() {
  if (!has_backlog()) return;
  absl::MutexLock lock(&mutex_);
  FlushLocked();
}

void CompletionSink::FlushLocked() {
  while (!backlog_.empty() && writer_.Write(backlog_.front())) backlog_.pop_front();
  has_backlog_.store(!backlog_.empty(), std::memory_order_release);
}

}  // namespace gemmd
