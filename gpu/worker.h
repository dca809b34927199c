// SPDX-License-Identifier: Apache-2.0
// The worker's loop: descriptors come from rings, are checked, wait in the batcher, go to the device as soon as it
// takes them, and their completions go back. See "Life of a job" in gpu/README.md.
#ifndef GEMMD_GPU_WORKER_H_
#define GEMMD_GPU_WORKER_H_

#include "gpu/batch_meter.h"
#include "gpu/batcher.h"
#include "gpu/completion_sink.h"
#include "gpu/device.h"
#include "gpu/fault_injection.h"
#include "gpu/in_flight_outputs.h"
#include "gpu/region_table.h"
#include "proto/job.h"
#include "proto/job_ring.h"
#include "proto/worker_counters.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace gemmd {

// A futex wake costs 13 to 40 us and a spinning reader reacts in under 1 us, while a tiny product takes a few: so the
// loop spins for the pause that a client makes between two calls (a gRPC round trip, 60 to 170 us), then sleeps. It
// learns from the last pause: where that was longer than this, only a little spinning is tried. The pause begins where
// a GPU is done with the job.
inline constexpr uint64_t kDefaultSpinNanos = 400'000;

struct WorkerOptions {
  BatchLimits limits;
  // After the latest job, at most. 0 never spins; ignored on a machine with one core.
  uint64_t spin_ns = kDefaultSpinNanos;
  // Before that, beside the job's computation, at most. 0 where the device computes on the cores of this machine.
  uint64_t spin_beside_ns = 0;
  FaultInjection faults;  // For tests.
  int loop_cpu = -1;      // The core that the loop stays on; -1 leaves that to the kernel.
};

// One thread calls Run; AttachRing and Stop may be called from any. The device and the counters must outlive the
// worker, and the device must be done with every batch (Device::Wait) before the worker is destroyed.
class Worker {
 public:
  // Descriptors taken from one ring before the device is looked at again: a full ring must not keep an idle device
  // waiting for hundreds of checks.
  static constexpr int kMaxReadsPerTurn = 64;

  Worker(Device& device, const RegionTable& regions, const WorkerCounters& counters, WorkerOptions options);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Starts to serve the front end's ring. Errors: FAILED_PRECONDITION if there is one already.
  absl::Status AttachRing(JobRing ring);

  // Serves until Stop (returns 0), a device beyond repair (kExitDeviceFault, after the completions of what it failed;
  // what never reached it goes back with kNotStarted) or a broken ring (kExitProtocolError).
  int Run();

  // Makes Run return. Waiting jobs are dropped: whoever asks for this has nobody left to answer.
  void Stop();

 private:
  // Job::ring names one. Attached rings live as long as the worker, so that completions always have a place to go.
  struct AttachedRing {
    AttachedRing(uint64_t ring_id, JobRing memory);
    const uint64_t id;
    const JobRing ring;
    SubmissionReader submissions;  // The loop's.
    CompletionSink completions;
  };

  int EndAfterFault(AttachedRing& ring);
  bool WaitForRing();
  bool ReadRing(AttachedRing& ring);
  void Accept(AttachedRing& ring, const JobDescriptor& descriptor);
  void Cancel(const AttachedRing& ring, uint64_t job_id);
  void ExpireJobs();
  void SubmitBatches();
  void PublishQueue();
  void OnDone(const Batch& batch, const BatchResult& result);
  void Finish(const Job& job, const JobCompletion& completion);
  void Wait(AttachedRing& ring);
  uint64_t SpinNanos() const;
  bool DeviceHasRoom() const;

  Device& device_;
  const RegionTable& regions_;
  const bool merging_;
  const uint64_t spin_ns_;
  const uint64_t spin_beside_ns_;
  const FaultInjection faults_;
  WorkerGauges& gauges_;  // The loop's.
  BatchMeter meter_;
  Batcher batcher_;              // The loop's.
  uint64_t busy_until_ns_ = 0;   // The loop's: when the latest job should be done.
  uint64_t last_pause_ns_ = 0;   // The loop's: from there to the next job.
  bool ring_is_broken_ = false;  // The loop's.

  std::atomic<bool> stopping_{false};
  std::atomic<int> batches_in_flight_{0};
  std::atomic<bool> waits_for_room_{false};  // The loop sleeps with jobs that the device could not take.
  std::atomic<AttachedRing*> front_end_ring_{nullptr};

  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<AttachedRing>> rings_ ABSL_GUARDED_BY(mutex_);
  InFlightOutputs outputs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_GPU_WORKER_H_
