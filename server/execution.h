// SPDX-License-Identifier: Apache-2.0
// One request of the Gemm service from receipt to answer, for the unary call and the stream alike: admission,
// translation, submission, cancellation, result, metrics.
#ifndef GEMMD_SERVER_EXECUTION_H_
#define GEMMD_SERVER_EXECUTION_H_

#include "gemmd/v1/gemm.pb.h"
#include "server/authenticator.h"
#include "server/drain_gate.h"
#include "server/job_builder.h"
#include "server/metrics.h"
#include "server/session.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include <cstdint>
#include <memory>

namespace gemmd {

// What the Gemm service works with. All outlive its calls.
struct GemmParts {
  WorkerPool& pool;
  const Authenticator& authenticator;
  const JobBuilder& builder;
  DrainGate& gate;
  Metrics& metrics;
};

// Whether the thread that submits may wait a little for the result. A stream has the next request to read.
enum class Submission : uint8_t { kAssist, kLeave };

// Start, then either (if it failed) Answer, or in the job's callback Complete and Answer. Cancel from any thread while
// the object lives. The owner keeps it until both Start has returned and the callback has run.
class Execution {
 public:
  Execution(const GemmParts& parts, Submission submission);
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  // Admits, translates and submits. `deadline_ns`: CLOCK_MONOTONIC, 0 for none. On error `done` is never called; it may
  // be called before Start returns.
  absl::Status Start(const v1::RunRequest& request, const std::shared_ptr<Session>& session, uint64_t deadline_ns,
                     WorkerPool::JobCallback done);

  // Drops the job if it still waits. Its callback comes in any case.
  void Cancel();

  // Fills the response from the job's completion and says how it went.
  absl::Status Complete(const absl::Status& status, const JobCompletion& completion, v1::RunResponse& response);

  // Counts the request as answered. Once, last.
  void Answer(const absl::Status& status);

  // For a request that cannot even be started; counted by Answer like the others.
  void Reject(Rejection rejection) { parts_.metrics.CountRejection(rejection); }

 private:
  absl::Status Admit(Session& session, uint64_t deadline_ns);
  absl::Status Submit(WorkerPool::JobCallback done);
  absl::Status Refuse(Rejection rejection, absl::Status status);
  void CountDeadlineMiss(const absl::Status& result, const JobCompletion& completion, uint64_t now_ns);

  const GemmParts& parts_;
  const Submission submission_;
  const uint64_t received_ns_;
  uint64_t submitted_ns_ = 0;
  Op op_ = Op::kNone;
  BuiltJob job_;
  DrainGate::Pass pass_;
  JobTicket ticket_;

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  SubmittedJob submitted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_EXECUTION_H_
