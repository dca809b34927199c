// SPDX-License-Identifier: Apache-2.0
// A device that computes nothing: it answers batches after a scripted delay, with scripted failures. For tests of the
// worker and, as gemmd-worker-fake, of the whole service under faults.
#ifndef GEMMD_TESTS_GPU_FAKE_DEVICE_H_
#define GEMMD_TESTS_GPU_FAKE_DEVICE_H_

#include "gpu/device.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace gemmd::testing {

// Region memory on the heap, for tests without descriptors.
class HeapMemory : public DeviceMemory {
 public:
  explicit HeapMemory(uint64_t byte_size, bool on_device = false) : bytes_(byte_size), on_device_(on_device) {}
  uint64_t byte_size() const override { return bytes_.size(); }
  absl::Status ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const override;
  std::byte* data() { return bytes_.data(); }
  bool on_device() const override { return on_device_; }

 private:
  std::vector<std::byte> bytes_;
  bool on_device_;
};

struct FakeScript {
  std::string device = "cpu";     // Of traits.
  uint64_t delay_ns = 0;          // Of each batch. 0: answered inside Submit.
  uint64_t fail_every = 0;        // Each so-many-th job fails with kDeviceFailed; 0: none.
  uint64_t exit_after_jobs = 0;   // The process ends, as by a crash, in the middle of this job; 0: never.
  uint64_t hang_after_jobs = 0;   // Batches are never answered from this job on; 0: never.
  uint64_t fault_after_jobs = 0;  // From this job on all fail and the device is beyond repair; 0: never.
  std::string hold_file = {};     // Batches are not answered while this file exists, beside which one ending in
                                  // ".held" appears once there is such a batch; empty: none.
  std::string prepare_log = {};   // File that gets a line for each prepared shape; empty: none.
  uint64_t prepare_delay_ns = 0;  // Of each shape.
  absl::Notification* prepare_gate = nullptr;  // Prepare waits for it; null: it does not.
  bool refuse_prepare = false;                 // UNIMPLEMENTED.
  int fill = -1;                               // 0 to 255: bytes that outputs are filled with; -1: left alone.
  uint64_t predict_ns = 10'000;
  int max_batches_in_flight = 1;
  bool manual = false;  // Batches wait for FinishOne instead of a delay.
};

class FakeDevice : public Device {
 public:
  explicit FakeDevice(FakeScript script);
  ~FakeDevice() override;

  const DeviceTraits& traits() const override { return traits_; }
  absl::StatusOr<std::shared_ptr<DeviceMemory>> Map(const RegionSpec& spec, UniqueFd fd) override;
  absl::StatusOr<Allocation> Allocate(uint64_t byte_size) override;
  absl::StatusOr<PrepareResult> Prepare(const PrepareShape& shape) override;
  void Submit(Batch batch, BatchDone done) override;
  void Wait() override;
  uint64_t PredictNanos(const Gemm& gemm) const override;
  absl::Status Healthy() const override;

  // With script.manual: waits until a batch was submitted, answers it, and says how many jobs it had.
  size_t FinishOne();
  // From now on it is beyond repair, and what it still has fails.
  void Break();
  // Waits until this many batches were submitted since the start.
  void AwaitSubmitted(uint64_t batches);

 private:
  struct Submitted {
    Batch batch;
    BatchDone done;
    uint64_t launched_ns = 0;
    bool hangs = false;
  };

  void Run();
  // Waits while the file of script_.hold_file exists and nobody destroys the device.
  void AwaitRelease() const;
  void Answer(Submitted submitted);
  Reason Execute(const Job& job);

  const FakeScript script_;
  DeviceTraits traits_;
  mutable absl::Mutex mutex_;
  std::deque<Submitted> queue_ ABSL_GUARDED_BY(mutex_);
  uint64_t unanswered_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t executed_jobs_ ABSL_GUARDED_BY(mutex_) = 0;
  bool faulted_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_GPU_FAKE_DEVICE_H_
