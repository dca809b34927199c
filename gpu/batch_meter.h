// SPDX-License-Identifier: Apache-2.0
// What batches add to the worker's counters: work, rows, bytes, sizes, time on the device. Owned by the worker.
#ifndef GEMMD_GPU_BATCH_METER_H_
#define GEMMD_GPU_BATCH_METER_H_

#include "gpu/device.h"
#include "gpu/job.h"
#include "proto/worker_counters.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include <cstdint>

namespace gemmd {

// Thread-safe. Costs some tens of nanoseconds per batch and counter.
class BatchMeter {
 public:
  explicit BatchMeter(WorkerCounts& counts) : counts_(counts) {}

  // A batch goes to the device. Each is followed by one Finish.
  void Start(uint64_t now_ns);

  // It came back. Jobs that failed count in the size of their batch, but not as work.
  void Finish(const Batch& batch, const BatchResult& result);

 private:
  WorkerCounts& counts_;
  absl::Mutex mutex_;
  int on_device_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t busy_since_ns_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_BATCH_METER_H_
