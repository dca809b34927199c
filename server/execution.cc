// SPDX-License-Identifier: Apache-2.0
#include "server/execution.h"

#include "proto/job_ring.h"
#include "server/convert.h"

#include "absl/types/span.h"

#include <algorithm>
#include <utility>

namespace gemmd {
namespace {

void Assign(absl::Span<const std::byte> bytes, std::string& field) {
  field.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

Execution::Execution(const GemmParts& parts, Submission submission, absl::string_view traceparent)
    : parts_(parts), submission_(submission) {
  trace_.received_ns = MonotonicNanos();
  trace_.context = parts_.requests.Begin(traceparent);
  trace_.span_id = parts_.requests.NewSpanId();
  parts_.metrics.AddInFlight(1);
}

Execution::~Execution() { parts_.metrics.AddInFlight(-1); }

absl::Status Execution::Start(const v1::RunRequest& request, const std::shared_ptr<Session>& session,
                              uint64_t deadline_ns, WorkerPool::JobCallback done) {
  trace_.op = OpOf(request);
  trace_.request_id = request.request_id();
  if (absl::Status status = Admit(*session, deadline_ns); !status.ok()) return status;
  absl::StatusOr<BuiltJob> job = parts_.builder.Build(request, *session);
  if (!job.ok()) {
    if (absl::IsResourceExhausted(job.status())) return Refuse(Rejection::kMemory, job.status());
    return job.status();
  }
  job_ = *std::move(job);
  job_.descriptor.deadline_ns = deadline_ns;
  return Submit(std::move(done));
}

absl::Status Execution::Admit(Session& session, uint64_t deadline_ns) {
  absl::StatusOr<DrainGate::Pass> pass = parts_.gate.Enter();
  if (!pass.ok()) return Refuse(Rejection::kDraining, pass.status());
  pass_ = *std::move(pass);
  absl::StatusOr<JobTicket> ticket = session.AdmitJob();
  if (!ticket.ok()) return Refuse(Rejection::kQuota, ticket.status());
  ticket_ = *std::move(ticket);
  if (deadline_ns != 0 && deadline_ns <= trace_.received_ns) {
    parts_.metrics.CountDeadlineMiss(DeadlineMiss::kArrival);
    return Refuse(Rejection::kDeadline, absl::DeadlineExceededError("the deadline passed before the request came"));
  }
  return absl::OkStatus();
}

absl::Status Execution::Submit(WorkerPool::JobCallback done) {
  trace_.shape = ShapeOf(job_.descriptor);
  trace_.submitted_ns = MonotonicNanos();
  WorkerPool& pool = parts_.pool;
  absl::StatusOr<SubmittedJob> submitted = submission_ == Submission::kAssist
                                               ? pool.SubmitAndAssist(job_.descriptor, job_.workers, std::move(done))
                                               : pool.Submit(job_.descriptor, job_.workers, std::move(done));
  if (!submitted.ok()) {
    const bool full = absl::IsResourceExhausted(submitted.status());
    return Refuse(full ? Rejection::kQueue : Rejection::kNoWorker, submitted.status());
  }
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    submitted_ = *submitted;
    cancelled = cancelled_;
  }
  if (cancelled) parts_.pool.Cancel(*submitted);
  return absl::OkStatus();
}

absl::Status Execution::Refuse(Rejection rejection, absl::Status status) {
  Reject(rejection);
  return status;
}

void Execution::Cancel() {
  SubmittedJob submitted;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    submitted = submitted_;
  }
  if (submitted.worker != kAnyWorker) parts_.pool.Cancel(submitted);
}

absl::Status Execution::Complete(const absl::Status& status, const JobCompletion& completion,
                                 v1::RunResponse& response) {
  trace_.completed_ns = MonotonicNanos();
  absl::Status result = StatusOfJob(status, completion);
  CountDeadlineMiss(result, completion, trace_.completed_ns);
  StageRecord stages{trace_.submitted_ns - trace_.received_ns, 0, completion.device_ns, 0};
  if (completion.launched_ns != 0) {
    trace_.launched_ns = completion.launched_ns;
    trace_.finished_ns = completion.launched_ns + completion.device_ns;
    // Both clocks are one; a worker that says otherwise gets 0.
    stages.queue_ns = completion.launched_ns - std::min(completion.launched_ns, trace_.submitted_ns);
  }
  trace_.batch_jobs = completion.batch_jobs;
  trace_.worker = WorkerOf(completion.job_id);
  if (result.ok()) {
    if (job_.d_bytes > 0) Assign(job_.d(), *response.mutable_d());
    if (job_.sf_bytes > 0) Assign(job_.sf(), *response.mutable_sf());
  }
  response.set_batch_jobs(completion.batch_jobs);
  stages.reply_ns = MonotonicNanos() - trace_.completed_ns;
  v1::StageTimes& times = *response.mutable_times();
  times.set_decode_ns(stages.decode_ns);
  times.set_queue_ns(stages.queue_ns);
  times.set_device_ns(stages.device_ns);
  times.set_reply_ns(stages.reply_ns);
  if (result.ok()) {
    parts_.metrics.CountExecution(stages, IoBytesOf(job_));
  }
  return result;
}

// A deadline that passes while the job waits ends it in the worker, or through gRPC, which cancels the call.
void Execution::CountDeadlineMiss(const absl::Status& result, const JobCompletion& completion, uint64_t now_ns) {
  if (job_.descriptor.deadline_ns == 0 || now_ns < job_.descriptor.deadline_ns) return;
  if (completion.batch_jobs > 0) {
    parts_.metrics.CountDeadlineMiss(DeadlineMiss::kDevice);
  } else if (absl::IsDeadlineExceeded(result) || absl::IsCancelled(result)) {
    parts_.metrics.CountDeadlineMiss(DeadlineMiss::kQueue);
  }
}

void Execution::Answer(const absl::Status& status) {
  // The memory and the right to a job are free before the client can ask again.
  job_.lease = ArenaLease();
  job_.pins.clear();
  ticket_ = JobTicket();
  trace_.answered_ns = MonotonicNanos();
  trace_.transport = job_.transport;
  trace_.code = status.code();
  parts_.metrics.CountRequest({trace_.op, job_.transport, status.code(), trace_.answered_ns - trace_.received_ns});
  parts_.requests.End(trace_, status);
}

}  // namespace gemmd
