// SPDX-License-Identifier: Apache-2.0
// Starts the worker processes, sees them die, and starts them again as RestartPolicy says. Owned by the pool.
//
// All processes are started by one thread that lives as long as the supervisor, because a worker asks the kernel to
// kill it when its parent *thread* ends (PR_SET_PDEATHSIG). A worker inherits its control socket, stdin, stdout and
// stderr, and no other descriptor.
#ifndef GEMMD_SERVER_SUPERVISOR_H_
#define GEMMD_SERVER_SUPERVISOR_H_

#include "proto/unique_fd.h"
#include "server/restart_policy.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include <cstdint>
#include <functional>
#include <string>
#include <sys/types.h>
#include <thread>
#include <vector>

namespace gemmd {

struct SupervisorOptions {
  std::string worker_binary;                      // Absolute path.
  std::vector<std::vector<std::string>> workers;  // Flags of each worker, without --control_fd.
  RestartLimits restart;
  uint64_t start_timeout_ns = 60'000'000'000;  // From exec to ReportReady: a GPU worker compiles kernels first.
  uint64_t exit_grace_ns = 1'000'000'000;      // From the end of the control socket to SIGKILL.
};

class Supervisor {
 public:
  // Called on the supervisor's thread; may block it for a short while.
  struct Events {
    // A process runs; `socket` is the front end's end of its control socket.
    std::function<void(int worker, pid_t pid, UniqueFd socket)> on_started;
    // It ended, or could not be started. `quarantined`: it will not be started again.
    std::function<void(int worker, RestartReason reason, bool quarantined)> on_ended;
  };

  Supervisor(SupervisorOptions options, Events events);
  // Ends all workers (the owner has closed their sockets by then; those that stay are killed) and reaps them.
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Starts the thread and the processes.
  void Start();

  // Any thread. Nothing is started from here on.
  void BeginStop();

  // Any thread. The worker takes jobs: its start-up timeout is over.
  void ReportReady(int worker);

  // Any thread. The worker does not finish what it was given: its process is killed.
  void ReportHung(int worker);

  // Any thread. The worker's control socket ended: the process has exit_grace_ns left.
  void ReportLost(int worker);

 private:
  struct Worker {
    explicit Worker(RestartLimits limits) : policy(limits) {}
    pid_t pid = 0;  // 0: not running.
    UniqueFd pidfd;
    RestartPolicy policy;
    uint64_t start_at_ns = 0;  // 0: not waiting to be started.
    uint64_t kill_at_ns = 0;   // 0: not to be killed.
    RestartReason kill_reason = RestartReason::kStartTimeout;
    bool killed = false;  // By us, for kill_reason.
  };

  void Run();
  bool stopping() const;
  void HandleReports(uint64_t now_ns);
  void HandleTimers(uint64_t now_ns);
  void WaitForNews(uint64_t now_ns);
  void ReapEnded(uint64_t now_ns);
  void StartWorker(int index, uint64_t now_ns);
  void HandleEnd(int index, int exit_status, uint64_t now_ns);
  void StopAll();
  void Wake();

  const SupervisorOptions options_;
  const Events events_;
  UniqueFd wake_;
  std::vector<Worker> workers_;  // Supervisor's thread.

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<int> ready_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> hung_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> lost_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_SUPERVISOR_H_
