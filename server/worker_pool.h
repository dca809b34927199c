// SPDX-License-Identifier: Apache-2.0
// The workers of this machine as one thing: which memory each of them has, which of them takes a job, and what happens
// when one dies. Composed of the supervisor (starts and restarts processes) and one WorkerLink per living worker.
//
// The pool keeps the descriptor of every region and tensor. A restarted worker gets all of them again before it is
// ready, so regions and resident tensors survive the death of a worker.
#ifndef GEMMD_SERVER_WORKER_POOL_H_
#define GEMMD_SERVER_WORKER_POOL_H_

#include "proto/control.h"
#include "proto/gpu_memory.h"
#include "proto/job.h"
#include "proto/unique_fd.h"
#include "proto/worker_counters.h"
#include "server/restart_policy.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

// What the worker said in its hello.
struct WorkerTraits {
  std::string device;  // GPU UUID, or "cpu".
  std::string name;    // For people.
  uint64_t memory_bytes = 0;
  uint32_t cores = 0;
  bool mps = false;  // Whether CUDA MPS shares the GPU between processes.
};

enum class WorkerState : uint8_t { kStarting = 1, kReady = 2, kDead = 3, kQuarantined = 4 };

struct WorkerSnapshot {
  WorkerTraits traits;
  WorkerState state = WorkerState::kStarting;
  uint32_t restarts = 0;
  std::array<uint32_t, kRestartReasonCount> restarts_by_reason{};
  int pid = 0;
  uint64_t jobs_in_flight = 0;
  uint64_t oldest_job_ns = 0;  // Age of the job that was given to it first and has no completion yet.
  WorkerCounts counts;         // Of all its processes so far.
  WorkerGauges gauges;         // Of the living one.
};

// No worker, or any.
inline constexpr int kAnyWorker = -1;

// Names a job for Cancel. Ids are unique while the daemon lives, across restarts of workers, and name their worker.
struct SubmittedJob {
  int worker = kAnyWorker;
  uint64_t job_id = 0;
};

// The uppermost bits of a job id are the index of its worker.
inline constexpr int kWorkerBits = 6;
inline constexpr int kMaxWorkers = 1 << kWorkerBits;

// Workers that can reach some memory, one bit for each index: a job can go to those that reach all of its operands.
using WorkerMask = uint64_t;
inline constexpr WorkerMask kAllWorkers = ~WorkerMask{0};
constexpr WorkerMask MaskOf(int worker) { return worker == kAnyWorker ? kAllWorkers : WorkerMask{1} << worker; }
constexpr bool Contains(WorkerMask workers, int worker) { return (workers >> worker & 1) != 0; }

// A region as the workers are given it.
struct RegionToMap {
  RegionKind kind = RegionKind::kHost;
  Access access = Access::kReadWrite;
  uint64_t byte_size = 0;
  WorkerMask workers = kAllWorkers;  // Who is to map it.
  IpcMemory ipc = {};                // kDeviceIpc, which has no descriptor.
};

// Memory that a worker allocated for a client to map.
struct PoolMemory {
  std::string device;  // GPU UUID, or "cpu".
  WorkerMask workers = 0;
  UniqueFd fd;  // Of a CUDA allocation, or a sealed memfd on "cpu".
};

// The worker that a job was given to; kAnyWorker for 0, which is no job.
constexpr int WorkerOf(uint64_t job_id) {
  return job_id == 0 ? kAnyWorker : static_cast<int>(job_id >> (64 - kWorkerBits));
}

// Thread-safe. Callbacks run on link reader threads and must not block; each is called exactly once.
class WorkerPool {
 public:
  using JobCallback = std::function<void(absl::Status, const JobCompletion&)>;
  using StatusCallback = std::function<void(absl::Status)>;
  using AllocateCallback = std::function<void(absl::StatusOr<int> worker)>;
  using PoolCallback = std::function<void(absl::StatusOr<PoolMemory>)>;
  using PrepareCallback = std::function<void(absl::StatusOr<ControlReply>)>;

  virtual ~WorkerPool() = default;

  // A fresh id for a region or tensor; ids are never reused while the daemon lives.
  virtual uint64_t NextRegionId() = 0;

  // The workers on a device (GPU UUID, or "cpu"); 0 if there are none.
  virtual WorkerMask WorkersOn(absl::string_view device) const = 0;

  // Maps a region in its workers, now and after restarts. The pool takes the descriptor. On failure nothing is kept.
  virtual void MapRegion(uint64_t region_id, const RegionToMap& region, UniqueFd fd, StatusCallback done) = 0;

  // Closes a region or tensor everywhere and forgets it. Done when no job uses it any more.
  virtual void CloseRegion(uint64_t region_id, StatusCallback done) = 0;

  // Allocates zeroed memory for a tensor in `worker`, or in the ready worker with most room, and says in which.
  virtual void AllocateTensor(uint64_t region_id, uint64_t byte_size, int worker, AllocateCallback done) = 0;

  // Allocates zeroed memory for a client to map, on the device of the one of `workers` with most room, and maps it in
  // all workers on that device. On failure nothing is kept.
  virtual void AllocatePool(uint64_t region_id, uint64_t byte_size, WorkerMask workers, PoolCallback done) = 0;

  // Submits to that ready worker of `workers` which has least predicted work. Errors at once (callback not
  // called): UNAVAILABLE (none ready; draining is checked by the caller), RESOURCE_EXHAUSTED (ring full).
  // The callback may run before Submit returns, on another thread.
  virtual absl::StatusOr<SubmittedJob> Submit(const JobDescriptor& descriptor, WorkerMask workers,
                                              JobCallback done) = 0;

  // The same, for callers that hold no lock: this thread may wait for completions for some tens of microseconds and run
  // callbacks, of this job and of others, before it returns. Saves the wake of another thread for a small product.
  virtual absl::StatusOr<SubmittedJob> SubmitAndAssist(const JobDescriptor& descriptor, WorkerMask workers,
                                                       JobCallback done) {
    return Submit(descriptor, workers, std::move(done));
  }

  // Asks the worker to drop a job that still waits; its callback then gets CANCELLED. A job that runs is left alone,
  // one that is done is none of its business.
  virtual void Cancel(const SubmittedJob& job) = 0;

  // Makes kernels ready on every ready worker.
  virtual void Prepare(const PrepareShape& shape, PrepareCallback done) = 0;

  // Changes the verbosity of every worker, of those started later too. `level`: as ControlRequest::log_level.
  virtual void SetLogLevel(uint8_t level) = 0;

  virtual std::vector<WorkerSnapshot> Snapshot() const = 0;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_WORKER_POOL_H_
