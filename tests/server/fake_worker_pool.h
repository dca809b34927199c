// SPDX-License-Identifier: Apache-2.0
// A WorkerPool without processes: one thread that maps regions for real and executes kCopy, in order. Tests of services
// and registries run against it; failures and delays are scripted.
#ifndef GEMMD_TESTS_SERVER_FAKE_WORKER_POOL_H_
#define GEMMD_TESTS_SERVER_FAKE_WORKER_POOL_H_

#include "proto/shared_memory.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <thread>
#include <vector>

namespace gemmd {

inline constexpr char kFakeGpu[] = "GPU-fake";

class FakeWorkerPool : public WorkerPool {
 public:
  // What a job other than kCopy does; called on the pool's thread.
  using JobHandler = std::function<JobCompletion(const JobDescriptor&)>;

  FakeWorkerPool();
  ~FakeWorkerPool() override;  // Runs what is queued first.

  uint64_t NextRegionId() override { return next_region_id_.fetch_add(1); }
  // One worker, on kFakeGpu.
  WorkerMask WorkersOn(absl::string_view device) const override { return device == kFakeGpu ? MaskOf(0) : 0; }
  void MapRegion(uint64_t region_id, const RegionToMap& region, UniqueFd fd, StatusCallback done) override;
  void CloseRegion(uint64_t region_id, StatusCallback done) override;
  void AllocateTensor(uint64_t region_id, uint64_t byte_size, int worker, AllocateCallback done) override;
  void AllocatePool(uint64_t region_id, uint64_t byte_size, WorkerMask workers, PoolCallback done) override;
  absl::StatusOr<SubmittedJob> Submit(const JobDescriptor& descriptor, WorkerMask workers, JobCallback done) override;
  void Cancel(const SubmittedJob& job) override;
  void Prepare(const PrepareShape& shape, PrepareCallback done) override;
  void SetLogLevel(uint8_t) override {}
  std::vector<WorkerSnapshot> Snapshot() const override;

  // Holds the thread back (jobs and callbacks queue up) until Resume.
  void Pause();
  void Resume();
  // Returns when everything queued so far has run.
  void Drain();

  void SetJobHandler(JobHandler handler);
  // The next MapRegion, AllocateTensor or AllocatePool (FailNextControl), Submit (FailNextSubmit), or job (FailNextJob)
  // fails with this; UNAVAILABLE in FailNextJob acts as the death of the worker.
  void FailNextControl(absl::Status status);
  void FailNextSubmit(absl::Status status);
  void FailNextJob(absl::Status status);

  // Regions and tensors mapped now; 0 shows that nothing leaked.
  size_t region_count() const;
  size_t jobs_queued() const;
  // Jobs that were cancelled and have not run yet; those answer CANCELLED and do not reach the handler.
  size_t jobs_to_cancel() const;
  // Bytes [offset, offset + byte_size) of a region; null if it is not mapped or shorter. Pool's thread, or while idle.
  std::byte* Bytes(uint64_t region_id, uint64_t offset, uint64_t byte_size) const;

 private:
  struct Memory {
    SharedMapping mapping;
    std::vector<std::byte> allocated;
    bool writable = true;
  };

  void Run();
  void Post(std::function<void()> task);
  std::optional<absl::Status> TakeFailure(std::optional<absl::Status> FakeWorkerPool::*slot);
  JobCompletion Execute(const JobDescriptor& job);
  JobCompletion Copy(const JobDescriptor& job) const;

  std::atomic<uint64_t> next_region_id_{1};
  std::atomic<uint64_t> next_job_id_{1};
  std::atomic<uint64_t> jobs_queued_{0};
  mutable absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<uint64_t, std::shared_ptr<Memory>> memory_ ABSL_GUARDED_BY(mutex_);
  std::set<uint64_t> cancelled_ ABSL_GUARDED_BY(mutex_);
  JobHandler handler_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> fail_control_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> fail_submit_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> fail_job_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_TESTS_SERVER_FAKE_WORKER_POOL_H_
