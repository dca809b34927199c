// SPDX-License-Identifier: Apache-2.0
// The pool of real worker processes: supervisor, one link per running process, and the table of regions and tensors
// that every worker must have. Made in main; used by the registries (memory) and the services (jobs).
//
// Memory is reconciled, not replayed: a worker that said hello is compared with the table, gets what it lacks, and is
// ready once a comparison finds no difference. So it does not matter what is registered or closed meanwhile.
//
// Lock order: the pool's mutex, then a link's. Events and callbacks of links come without either.
#ifndef GEMMD_SERVER_PROCESS_WORKER_POOL_H_
#define GEMMD_SERVER_PROCESS_WORKER_POOL_H_

#include "proto/unique_fd.h"
#include "server/fanout.h"
#include "server/supervisor.h"
#include "server/worker_link.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace gemmd {

struct ProcessWorkerPoolOptions {
  SupervisorOptions supervisor;
  WorkerLinkOptions link;  // But for what is set for each worker: spins, least work, its index and generation.
  int spin_us = -1;        // SpinTimesFor takes it.
  // What every worker prepares once it is ready, the successor of a dead one too, while it takes jobs.
  std::vector<PrepareShape> warm_up;
  std::vector<std::string> devices;  // What each worker is called until its hello: "cpu", or the UUID of a GPU.
};

class ProcessWorkerPool : public WorkerPool {
 public:
  // `on_change` is called after the state of any worker changed, on a thread of the pool; it may take snapshots.
  ProcessWorkerPool(ProcessWorkerPoolOptions options, std::function<void()> on_change);
  // Ends the workers. Whoever waits for a callback gets UNAVAILABLE.
  ~ProcessWorkerPool() override;

  void Start();

  // Waits until every worker is ready. Errors: UNAVAILABLE as soon as one is quarantined.
  absl::Status WaitReady();

  // Waits until every worker has prepared options.warm_up. Errors: of the first shape that a worker refused, and as
  // WaitReady.
  absl::Status WaitWarm();

  uint64_t NextRegionId() override { return next_region_id_.fetch_add(1, std::memory_order_relaxed); }
  WorkerMask WorkersOn(absl::string_view device) const override;
  void MapRegion(uint64_t region_id, const RegionToMap& region, UniqueFd fd, StatusCallback done) override;
  void CloseRegion(uint64_t region_id, StatusCallback done) override;
  void AllocateTensor(uint64_t region_id, uint64_t byte_size, int worker, AllocateCallback done) override;
  void AllocatePool(uint64_t region_id, uint64_t byte_size, WorkerMask workers, PoolCallback done) override;
  absl::StatusOr<SubmittedJob> Submit(const JobDescriptor& descriptor, WorkerMask workers, JobCallback done) override;
  absl::StatusOr<SubmittedJob> SubmitAndAssist(const JobDescriptor& descriptor, WorkerMask workers,
                                               JobCallback done) override;
  void Cancel(const SubmittedJob& job) override;
  void Prepare(const PrepareShape& shape, PrepareCallback done) override;
  void SetLogLevel(uint8_t level) override;
  std::vector<WorkerSnapshot> Snapshot() const override;

 private:
  struct Region : RegionToMap {
    std::shared_ptr<const UniqueFd> fd;
  };
  struct Slot {
    WorkerTraits traits;
    WorkerState state = WorkerState::kStarting;
    uint32_t generation = 0;                        // Processes started so far.
    RestartReason ended_by = RestartReason::kExit;  // Of the latest that ended.
    std::array<uint32_t, kRestartReasonCount> restarts_by_reason{};
    std::optional<WorkerCounters> counters;  // Of the living process.
    WorkerCounts past_counts;                // Of those before it.
    pid_t pid = 0;
    bool greeted = false;
    std::unique_ptr<WorkerLink> link;
    std::unordered_set<uint64_t> mapped;  // Region ids that it has or is being given.
    bool warm = false;                    // Has prepared options.warm_up.
    uint32_t reconciling = 0;             // Requests of the running reconciliation without a reply.
  };

  // A job that a dying worker never began, until another can take it.
  struct ReturnedJob {
    JobDescriptor descriptor;
    std::shared_ptr<JobCallback> callback;
    int returns = 1;  // By so many workers.
  };

  absl::StatusOr<SubmittedJob> SubmitLocked(const JobDescriptor& descriptor, WorkerMask workers, JobCallback done,
                                            int returns = 0) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  Slot& slot(int worker) ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return slots_[static_cast<size_t>(worker)]; }
  bool IsCurrent(int worker, uint32_t generation) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void OnStarted(int worker, pid_t pid, UniqueFd socket);
  void OnEnded(int worker, RestartReason reason, bool quarantined);
  void OnHello(int worker, uint32_t generation, const WorkerTraits& traits, const UniqueFd& fd);
  void OnDeath(int worker, uint32_t generation);
  void OnHang(int worker, uint32_t generation);
  void OnReturned(int worker, uint32_t generation, const JobDescriptor& descriptor, int returns, JobCallback callback);
  void SubmitReturned();
  WorkerMask HomesOf(const JobDescriptor& descriptor) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool HasFuture(WorkerMask workers) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Reconcile(int worker, uint32_t generation);
  bool SendDifference(int worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnReconciled(int worker, uint32_t generation, const absl::Status& status);
  void WarmUp(int worker, uint32_t generation, size_t next);
  void OnWarmedUp(int worker, uint32_t generation, size_t index, const absl::Status& status);
  void SendRegion(uint64_t region_id, const Region& region, WorkerMask workers, const std::shared_ptr<Fanout>& fanout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Allocate(uint64_t region_id, const RegionToMap& memory, const AllocateCallback& done);
  absl::StatusOr<int> OnAllocated(uint64_t region_id, int worker, const RegionToMap& memory,
                                  absl::StatusOr<ControlResult> result);
  void SharePool(uint64_t region_id, int worker, PoolCallback done);
  int RoomiestWorker(WorkerMask workers) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  WorkerMask WorkersOnLocked(absl::string_view device) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void SendLogLevel(const Slot& slot) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool Warm() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool Settled() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const ProcessWorkerPoolOptions options_;
  const std::function<void()> on_change_;
  const int usable_cores_;
  std::atomic<uint64_t> next_region_id_{1};

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int starting_links_ ABSL_GUARDED_BY(mutex_) = 0;            // Links whose Run has not returned.
  absl::Status warm_up_status_ ABSL_GUARDED_BY(mutex_);       // The first refusal.
  std::optional<uint8_t> log_level_ ABSL_GUARDED_BY(mutex_);  // Once it was changed.
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, Region> regions_ ABSL_GUARDED_BY(mutex_);
  std::vector<ReturnedJob> returned_ ABSL_GUARDED_BY(mutex_);

  std::unique_ptr<Supervisor> supervisor_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_PROCESS_WORKER_POOL_H_
