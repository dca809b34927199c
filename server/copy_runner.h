// SPDX-License-Identifier: Apache-2.0
// Runs copy jobs, and what else fills tensors, for one call of the Tensors service, one at a time, within its session's
// allowance, and cancels the one that waits when the call is cancelled.
#ifndef GEMMD_SERVER_COPY_RUNNER_H_
#define GEMMD_SERVER_COPY_RUNNER_H_

#include "server/copy_job.h"
#include "server/session.h"
#include "server/worker_pool.h"

#include "absl/status/status.h"

#include <functional>
#include <memory>
#include <utility>

namespace gemmd {

// Thread-safe; but only one job at a time.
class CopyRunner {
 public:
  using Done = std::function<void(absl::Status)>;

  CopyRunner(WorkerPool& pool, std::shared_ptr<Session> session);

  // Starts a job in `worker`. `done` is called exactly once, on this thread or one of the pool; it may destroy the
  // runner. Memory that the job names must stay until then.
  void Start(const CopySpec& spec, int worker, const Done& done) { Start(MakeCopyJob(spec), worker, done); }
  // The same for any job that moves bytes between the service's memory.
  void Start(const JobDescriptor& job, int worker, const Done& done);

  // Asks the worker to drop the job that runs now, if any, and every later one.
  void Cancel();

 private:
  struct State;

  WorkerPool& pool_;
  const std::shared_ptr<Session> session_;
  const std::shared_ptr<State> state_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_COPY_RUNNER_H_
