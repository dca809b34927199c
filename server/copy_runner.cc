// SPDX-License-Identifier: Apache-2.0
#include "server/copy_runner.h"

#include "server/convert.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <optional>

namespace gemmd {

struct CopyRunner::State {
  absl::Mutex mutex;
  std::optional<SubmittedJob> job ABSL_GUARDED_BY(mutex);  // The latest one, done or not.
  bool cancelled ABSL_GUARDED_BY(mutex) = false;
};

CopyRunner::CopyRunner(WorkerPool& pool, std::shared_ptr<Session> session)
    : pool_(pool), session_(std::move(session)), state_(std::make_shared<State>()) {}

void CopyRunner::Start(const JobDescriptor& job, int worker, const Done& done) {
  absl::StatusOr<JobTicket> ticket = session_->AdmitJob();
  if (!ticket.ok()) {
    done(ticket.status());
    return;
  }
  // `done` may run, and destroy this runner, before Submit returns.
  WorkerPool& pool = pool_;
  const std::shared_ptr<State> state = state_;
  auto held = std::make_shared<JobTicket>(*std::move(ticket));
  const absl::StatusOr<SubmittedJob> submitted =
      pool.Submit(job, MaskOf(worker), [held, done](const absl::Status& status, const JobCompletion& completion) {
        *held = JobTicket();
        done(StatusOfJob(status, completion));
      });
  if (!submitted.ok()) {
    *held = JobTicket();
    done(submitted.status());
    return;
  }
  bool cancelled = false;
  {
    absl::MutexLock lock(&state->mutex);
    state->job = *submitted;
    cancelled = state->cancelled;
  }
  if (cancelled) pool.Cancel(*submitted);
}

void CopyRunner::Cancel() {
  std::optional<SubmittedJob> job;
  {
    absl::MutexLock lock(&state_->mutex);
    state_->cancelled = true;
    job = state_->job;
  }
  if (job.has_value()) pool_.Cancel(*job);
}

}  // namespace gemmd
