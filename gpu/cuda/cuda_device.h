// SPDX-License-Identifier: Apache-2.0
// The Device on one Hopper GPU: kernels compiled at run time, several batches in flight on streams of their own, so
// that copies of one run beside kernels of another. See gpu/cuda/README.md.
//
// Threads: Submit, Wait and PredictNanos from the worker's loop; Map, Allocate and Prepare from any. Each stream has a
// thread that waits for its batches and calls `done`.
#ifndef GEMMD_GPU_CUDA_CUDA_DEVICE_H_
#define GEMMD_GPU_CUDA_CUDA_DEVICE_H_

#include "gpu/cuda/batch_launcher.h"
#include "gpu/cuda/driver.h"
#include "gpu/cuda/gemm_launcher.h"
#include "gpu/cuda/gpu_reader.h"
#include "gpu/cuda/nvtx_range.h"
#include "gpu/device.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {

struct CudaDeviceOptions {
  // UUID ("GPU-..."), or index ("0") among those that this process sees.
  std::string gpu = "0";
  GemmLauncher::Options kernels;
  // Batches in flight. Two would keep both directions of PCIe and the SMs busy; more hide the gaps between small ones.
  int streams = 4;
  // Scratch memory that stays allocated between batches.
  uint64_t scratch_keep_bytes = uint64_t{4} << 30;
};

// Every Hopper GPU that this process sees. Errors: FAILED_PRECONDITION, in one line, if there is none, no driver, or no
// NVRTC to compile kernels with.
absl::StatusOr<std::vector<GpuName>> ListHopperGpus();

class CudaDevice : public Device {
 public:
  // Waits until the kernels that serve any shape are compiled or loaded.
  // Errors: FAILED_PRECONDITION if there is no such GPU, it is not Hopper, or the driver is too old.
  static absl::StatusOr<std::unique_ptr<Device>> Open(const CudaDeviceOptions& options);
  ~CudaDevice() override;

  const DeviceTraits& traits() const override { return traits_; }
  absl::StatusOr<std::shared_ptr<DeviceMemory>> Map(const RegionSpec& spec, UniqueFd fd) override;
  absl::StatusOr<Allocation> Allocate(uint64_t byte_size) override;
  absl::StatusOr<PrepareResult> Prepare(const PrepareShape& shape) override;
  void Submit(Batch batch, BatchDone done) override;
  void Wait() override;
  uint64_t PredictNanos(const Gemm& gemm) const override;
  absl::Status Healthy() const override;
  void InjectFault(DeviceFault fault) override { next_fault_ = fault; }

  // For programs that measure: which kernel ran, how many were compiled. Same thread as Submit.
  const GemmLauncher& launcher() const { return *launcher_; }

 private:
  // A stream, and the batch that runs on it.
  struct Lane {
    WorkStream work;
    cudaEvent_t finished = nullptr;
    bool busy = false;  // Guarded by CudaDevice::mutex_.
    CountedRows counted;
    std::thread thread;

    // The thread waits under a lock of its own: whoever unlocks a Mutex looks at the conditions of all that wait there.
    absl::Mutex mutex;
    bool started ABSL_GUARDED_BY(mutex) = false;  // The thread may wait for the batch.
    bool stopping ABSL_GUARDED_BY(mutex) = false;
    Batch batch ABSL_GUARDED_BY(mutex);
    BatchDone done ABSL_GUARDED_BY(mutex);
    BatchResult result ABSL_GUARDED_BY(mutex);
  };

  CudaDevice(const CudaDeviceOptions& options, int device);

  absl::Status Start(const CudaDeviceOptions& options);
  absl::Status ReadPeaks();
  Lane* TakeLane();
  void RunLane(Lane* lane);
  void NoteFailure(cudaError_t error) ABSL_LOCKS_EXCLUDED(mutex_);
  void CountError(const absl::Status& status) const;
  void CountError(cudaError_t error) const;
  void NoteLoss(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

  const int device_;
  const WorkerCounters* const counters_;
  DeviceTraits traits_;
  Driver driver_;
  std::unique_ptr<GemmLauncher> launcher_;
  std::unique_ptr<GpuReader> reader_;
  std::unique_ptr<BatchLauncher> batches_;
  std::optional<DeviceFault> next_fault_;  // The loop's.
  const NvtxDomain nvtx_;

  mutable absl::Mutex mutex_;
  std::vector<std::unique_ptr<Lane>>
      lanes_;  // The vector never changes while threads run; the lanes' state is guarded.
  int unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> lost_{false};                // Set after health_: the loop asks several times for each job.
  absl::Status health_ ABSL_GUARDED_BY(mutex_);  // Why it is lost.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_CUDA_DEVICE_H_
