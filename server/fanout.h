// SPDX-License-Identifier: Apache-2.0
// One question to several workers, one answer.
#ifndef GEMMD_SERVER_FANOUT_H_
#define GEMMD_SERVER_FANOUT_H_

#include "proto/control.h"
#include "server/worker_link.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <functional>
#include <utility>

namespace gemmd {

// Waits for the replies of several workers to one question, then calls `done` once. Its maker holds one count until all
// questions are sent.
class Fanout {
 public:
  using Done = std::function<void(absl::Status, const ControlReply&)>;
  explicit Fanout(Done done) : done_(std::move(done)) {}

  void Expect() {
    absl::MutexLock lock(&mutex_);
    ++waiting_;
  }

  // A worker that dies is no refusal: its successor gets everything again.
  void Answer(const absl::StatusOr<ControlResult>& result) {
    if (!result.ok()) return Finish(absl::IsUnavailable(result.status()) ? absl::OkStatus() : result.status(), {});
    Finish(absl::OkStatus(), result->reply);
  }

  void Unexpect() { AllSent(); }
  void AllSent() { Finish(absl::OkStatus(), {}); }

 private:
  void Finish(const absl::Status& status, const ControlReply& reply) {
    absl::Status result;
    ControlReply sum;
    {
      absl::MutexLock lock(&mutex_);
      if (status_.ok()) status_ = status;
      sum_.kernels_ready += reply.kernels_ready;
      sum_.kernels_compiled += reply.kernels_compiled;
      if (--waiting_ > 0) return;
      result = status_;
      sum = sum_;
    }
    done_(result, sum);
  }

  const Done done_;
  absl::Mutex mutex_;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 1;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  ControlReply sum_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_FANOUT_H_
