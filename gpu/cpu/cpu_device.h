// SPDX-License-Identifier: Apache-2.0
// The Device on the CPU: every operation and contract of the GPU's, on a BLAS. It serves where there is no GPU, and is
// what GPU results are compared with. See gpu/cpu/README.md.
//
// Threads: small batches run on the thread that submits them; others on a thread of the device's own, which shares the
// tiles with a fixed pool. Map and Allocate may be called from any thread, the rest as gpu/device.h says.
#ifndef GEMMD_GPU_CPU_CPU_DEVICE_H_
#define GEMMD_GPU_CPU_CPU_DEVICE_H_

#include "gpu/cpu/batch_runner.h"
#include "gpu/cpu/thread_pool.h"
#include "gpu/device.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>

namespace gemmd {

struct CpuDeviceOptions {
  // 0: every core that this process may use (affinity and cgroup quota).
  int threads = 0;

  // Batches predicted to take less run on the submitting thread. Handing a batch to another thread and waking the pool
  // costs 10 to 50 us, more than it gains below this; and the worker's loop can spare as much.
  uint64_t small_batch_ns = 50'000;

  // Bytes that one job may use for intermediate copies (shared memory that is not mapped, quantized A). More is refused
  // with kOutOfMemory. 0: half of the memory, which leaves the other half to tensors.
  uint64_t scratch_limit_bytes = 0;
};

class CpuDevice : public Device {
 public:
  // Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<Device>> Open(const CpuDeviceOptions& options);
  ~CpuDevice() override;

  const DeviceTraits& traits() const override { return traits_; }
  absl::StatusOr<std::shared_ptr<DeviceMemory>> Map(const RegionSpec& spec, UniqueFd fd) override;
  absl::StatusOr<Allocation> Allocate(uint64_t byte_size) override;
  absl::StatusOr<PrepareResult> Prepare(const PrepareShape& shape) override;
  void Submit(Batch batch, BatchDone done) override;
  void Wait() override;
  uint64_t PredictNanos(const Gemm& gemm) const override;
  absl::Status Healthy() const override { return absl::OkStatus(); }

 private:
  struct Submitted {
    Batch batch;
    BatchDone done;
  };

  CpuDevice(const CpuDeviceOptions& options, int threads, DeviceTraits traits);
  void RunSubmitted() ABSL_LOCKS_EXCLUDED(mutex_);

  const uint64_t small_batch_ns_;
  const DeviceTraits traits_;
  double flops_per_ns_ = 1;  // Of one thread; measured when the device opens.
  ThreadPool pool_;
  BatchRunner runner_;  // One batch at a time: the loop's (while nothing is submitted) or thread_'s.

  absl::Mutex mutex_;
  std::deque<Submitted> submitted_ ABSL_GUARDED_BY(mutex_);  // The front one holds runner_.
  int unfinished_ ABSL_GUARDED_BY(mutex_) = 0;               // Those whose `done` has not returned.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_CPU_DEVICE_H_
