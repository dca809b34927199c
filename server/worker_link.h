// SPDX-License-Identifier: Apache-2.0
// The front end's end of one running worker process: its control socket and its job ring. One object per worker
// process, owned by the pool (server/process_worker_pool.h); when the process dies the link fails everything that was
// in flight with UNAVAILABLE, and the pool replaces it.
//
// Two threads belong to a link: one reads the control socket, one reads completions while jobs are in flight. A wake of
// that second thread costs as much as a small product; so a submitter that finds the link idle may read completions
// itself for a few microseconds (TryAssist, Assist), and the thread only takes over when that was not enough.
#ifndef GEMMD_SERVER_WORKER_LINK_H_
#define GEMMD_SERVER_WORKER_LINK_H_

#include "proto/control.h"
#include "proto/job.h"
#include "proto/job_ring.h"
#include "proto/log.h"
#include "proto/unique_fd.h"
#include "server/spin_times.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

namespace gemmd {

struct WorkerLinkOptions {
  uint32_t ring_slots = kDefaultRingSlots;
  SpinTimes spins = {};
  // Jobs in flight; the worker's own queue holds 4096 (gpu/batcher.h). A power of two.
  uint32_t max_jobs_in_flight = 4096;
  // Control requests sent and not answered; the rest waits here, so that a send never blocks on a full socket buffer
  // (which holds about 270 of them).
  uint32_t max_control_in_flight = 128;
  // Without a completion for so long, and for as long again as the work in flight takes at this rate (units of
  // router.h's PredictWork), while jobs are in flight: the worker hangs. 0: never.
  uint64_t hang_timeout_ns = 0;
  double least_work_per_second = 2e9;  // One slow core.
  // Index of the worker, and what tells the job ids of this process from those of its latest predecessors.
  int worker = 0;
  uint32_t generation = 0;
};

struct ControlResult {
  ControlReply reply;
  UniqueFd fd;  // kAllocate.
};

// Thread-safe, except for the destructor. Callbacks run on the link's own threads or inside Assist, never inside the
// call that passed them, and must not block.
class WorkerLink {
 public:
  using JobCallback = WorkerPool::JobCallback;
  using ControlCallback = std::function<void(absl::StatusOr<ControlResult>)>;

  struct Events {
    // The worker takes requests. `counters`: what WorkerCounters::Open takes.
    std::function<void(const WorkerTraits&, UniqueFd counters)> on_hello;
    std::function<void()> on_death;  // Once, before the first failed callback.
    std::function<void()> on_hang;   // The process should be killed; on_death follows.
    // The worker ends and gives back a job that it never began, submitted with that many `returns`. Whoever takes it
    // calls the callback some day; unset: the callback gets UNAVAILABLE.
    std::function<void(const JobDescriptor&, int returns, JobCallback)> on_returned;
  };

  // Takes the front end's end of the control socket of a process that was just started.
  static absl::StatusOr<std::unique_ptr<WorkerLink>> Create(UniqueFd socket, WorkerLinkOptions options, Events events);

  // Starts the threads and offers the worker its ring. Once, before anything below. Separate from Create, so that the
  // owner has stored the link before the first event comes.
  absl::Status Run();

  // Not from a callback. Ends the connection (the worker then exits), waits for assistants and fails what is in flight.
  ~WorkerLink();
  WorkerLink(const WorkerLink&) = delete;
  WorkerLink& operator=(const WorkerLink&) = delete;

  uint64_t jobs_in_flight() const { return jobs_in_flight_.load(std::memory_order_relaxed); }
  // Sum over jobs in flight of what their submitters predicted.
  double work_in_flight() const { return work_in_flight_.load(std::memory_order_relaxed); }

  // When the oldest job in flight was submitted, CLOCK_MONOTONIC; 0: there is none. Takes no lock.
  uint64_t oldest_submission_ns() const;

  // Puts a job on the ring under a fresh job_id (the descriptor's own is overwritten), which it returns. The callback
  // is called exactly once: with the completion, or with UNAVAILABLE if the worker dies. `work` is counted in
  // work_in_flight while it lasts; `returns`: how many workers have given the job back. Errors (then the callback is
  // never called): RESOURCE_EXHAUSTED (full), UNAVAILABLE.
  absl::StatusOr<uint64_t> Submit(const JobDescriptor& descriptor, double work, JobCallback callback, int returns = 0);

  // True if the caller is to call Assist, which it must, soon: the job that it just submitted is the only one. False:
  // the completion thread takes care. After each Submit exactly one call of TryAssist or LeaveToThread is due.
  bool TryAssist();
  void LeaveToThread();

  // Reads completions on this thread until there are none to wait for or the time is over. The link lives until then.
  void Assist();

  // Asks the worker to drop a job that still waits; its callback then gets CANCELLED.
  void Cancel(uint64_t job_id);

  // Sends a control request (its request_id is overwritten) with a copy of `fd`, which may be null. The callback is
  // called exactly once. Errors (then the callback is never called): UNAVAILABLE.
  absl::Status Control(ControlRequest request, std::shared_ptr<const UniqueFd> fd, ControlCallback callback);

 private:
  struct PendingJob {
    uint64_t job_id = 0;  // 0: free.
    double work = 0;
    JobCallback callback;
    JobDescriptor descriptor;  // For on_returned, as the next.
    int returns = 0;
  };
  struct OutgoingControl {
    ControlRequest request;
    std::shared_ptr<const UniqueFd> fd;
  };

  WorkerLink(UniqueFd socket, JobRing ring, WorkerLinkOptions options, Events events);

  absl::Status AttachRing();
  void ReadControl();
  void HandleReply(const ControlReply& reply, UniqueFd fd);
  void SendQueuedControl() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailControl();
  // Who reads the completion ring.
  enum class Reader : uint8_t { kNobody, kThread, kAssistant };

  void RunCompletionThread();
  bool BecomeReader();
  void ReadUntilIdle();
  bool StopReading(bool was_dead);
  bool DrainRing();
  uint64_t HangDeadline(uint64_t progress_ns) const;
  void Complete(const JobCompletion& completion);
  void FailJobs();
  bool TakeJob(uint64_t job_id, PendingJob& job);
  void ReleaseSlot(uint32_t index, double work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool dead() const { return dead_.load(std::memory_order_acquire); }

  const WorkerLinkOptions options_;
  const Events events_;
  const UniqueFd socket_;
  const JobRing ring_;
  CompletionReader completions_;  // Whoever reader_ names.

  // A worker that breaks the protocol does it again and again until it is gone.
  LogLimiter broken_ring_;
  LogLimiter unknown_job_;
  std::atomic<bool> dead_{false};
  std::atomic<uint64_t> jobs_in_flight_{0};
  std::atomic<double> work_in_flight_{0};
  // When the job of each slot was submitted; 0: free. Apart from the slots, for whoever looks without the lock.
  std::vector<std::atomic<uint64_t>> submitted_ns_;

  absl::Mutex mutex_;
  SubmissionWriter submissions_ ABSL_GUARDED_BY(mutex_);
  std::vector<PendingJob> jobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_jobs_ ABSL_GUARDED_BY(mutex_);
  Reader reader_ ABSL_GUARDED_BY(mutex_) = Reader::kNobody;
  bool thread_wanted_ ABSL_GUARDED_BY(mutex_) = false;  // By a job that nobody waits for.
  uint64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 1;
  std::unordered_map<uint64_t, ControlCallback> controls_ ABSL_GUARDED_BY(mutex_);
  std::deque<OutgoingControl> control_queue_ ABSL_GUARDED_BY(mutex_);
  uint32_t controls_sent_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_request_id_ ABSL_GUARDED_BY(mutex_) = 1;

  std::thread control_thread_;
  std::thread completion_thread_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_WORKER_LINK_H_
