// SPDX-License-Identifier: Apache-2.0
// How many of gRPC's threads wait for the network. Its callback API starts half as many as there are cores, at least
// two, and each passes the wait on to another when it has something to do: a thread switch in every call. With one
// thread a small product takes about half the time (server/README.md has the figures). One thread also is a limit, so
// all of them serve while there is more to do than it can.
//
// gRPC has no setting for it. A callback may block, though, and a thread in such a callback does not wait for the
// network: the idle ones are parked in callbacks of calls that were cancelled before they began. The one that waits
// gets such a call now and then too, or it would take naps.
#ifndef GEMMD_SERVER_GRPC_POLLERS_H_
#define GEMMD_SERVER_GRPC_POLLERS_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <memory>
#include <sched.h>
#include <sys/types.h>
#include <thread>
#include <vector>

namespace gemmd {

struct PollerPolicy {
  // How often the load is looked at.
  absl::Duration period = absl::Milliseconds(100);
  // All threads serve once the one that does has used more than this share of a core for a period...
  double release_above = 0.85;
  // ...until all together have used less than this for that long.
  double park_below = 0.5;
  absl::Duration quiet_time = absl::Seconds(1);
};

class GrpcPollers {
 public:
  // A server with callback services runs in this process: the threads exist as long as it does. Where gRPC has not
  // exactly these threads (newer versions have others), waits a second for them and then does nothing.
  // `cpus`: where they may run.
  GrpcPollers(PollerPolicy policy, const cpu_set_t& cpus);
  // Lets all threads serve again and returns when they do.
  ~GrpcPollers();
  GrpcPollers(const GrpcPollers&) = delete;
  GrpcPollers& operator=(const GrpcPollers&) = delete;

  // How many threads serve now.
  int serving() const { return serving_.load(std::memory_order_relaxed); }
  int total() const { return static_cast<int>(threads_.size()); }

 private:
  struct CancelledCall;

  void Govern();
  // Returns when all but one are in their callbacks.
  void Park();
  // Returns when all have left them.
  void Release();
  // Gives a thread that waits something to do.
  void Nudge();
  double CpuSeconds() const;
  // Waits; true: the end.
  bool Ended(absl::Duration wait);

  const PollerPolicy policy_;
  const std::vector<pid_t> threads_;
  grpc::GenericStub stub_;
  // Of the threads that are parked. Used by one thread at a time: the constructor's, the governor, the destructor's.
  std::vector<std::unique_ptr<CancelledCall>> calls_;
  std::unique_ptr<CancelledCall> nudge_;  // The latest one; the governor's.
  absl::Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool parking_ ABSL_GUARDED_BY(mutex_) = false;
  int parked_ ABSL_GUARDED_BY(mutex_) = 0;
  bool nudging_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<int> serving_;
  std::thread governor_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_GRPC_POLLERS_H_
