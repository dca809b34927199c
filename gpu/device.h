// SPDX-License-Identifier: Apache-2.0
// The seam between the worker and what computes: CpuDevice, CudaDevice and, in tests, FakeDevice. The worker owns one
// device and calls it from its own threads as said at each function; nothing above this line knows CUDA or BLAS.
#ifndef GEMMD_GPU_DEVICE_H_
#define GEMMD_GPU_DEVICE_H_

#include "gpu/job.h"
#include "proto/control.h"
#include "proto/unique_fd.h"
#include "proto/worker_counters.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {

// Memory that a device can reach: a mapped region or a tensor. Destroying it unmaps it; jobs hold it by shared_ptr, so
// that nothing is unmapped under a running kernel. Its device must outlive it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual uint64_t byte_size() const = 0;
  // Copies [offset, offset + byte_size) to host memory, for small arrays that the job check reads (groups).
  // Any thread; but the worker's loop only where on_device(). Errors: OUT_OF_RANGE if the memory is no longer there (a
  // shared-memory object was truncated), RESOURCE_EXHAUSTED, DATA_LOSS if the device is beyond repair (and
  // Device::Healthy says so), INTERNAL for other failures of the device.
  virtual absl::Status ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const = 0;
  // Whether it is the device's own memory: there ReadBytes takes some microseconds, but waits for no running batch.
  virtual bool on_device() const { return false; }
};

struct RegionSpec {
  RegionKind kind = RegionKind::kHost;
  Access access = Access::kReadWrite;
  uint64_t byte_size = 0;
  IpcMemory ipc = {};  // kDeviceIpc only.
};

struct Allocation {
  std::shared_ptr<DeviceMemory> memory;
  UniqueFd fd;  // Keeps the memory alive without this process; Map of another worker accepts it as kTensor or kPool.
};

struct DeviceTraits {
  std::string device;  // GPU UUID, or "cpu".
  std::string name;    // For people.
  uint64_t memory_bytes = 0;
  uint32_t cores = 0;
  bool mps = false;  // Whether CUDA MPS shares the GPU between processes; without it they take turns.
  std::array<uint64_t, kProductTypes> peak_flops{};  // Per second, by ProductType; 0: not known.
  uint64_t peak_memory_bytes = 0;                    // Per second; 0: not known.
  int max_batches_in_flight = 1;  // Submit may be called again before the previous batch is done, up to this many.
};

struct GpuName {
  std::string uuid;  // "GPU-..." as nvidia-smi prints it.
  std::string name;  // "NVIDIA H100 80GB HBM3".
};

struct PrepareResult {
  uint32_t kernels_ready = 0;
  uint32_t kernels_compiled = 0;
};

// How one batch went. `reasons[i]` belongs to jobs[i]; Rule::kNone is success.
struct BatchResult {
  std::vector<Reason> reasons;
  uint64_t launched_ns = 0;  // CLOCK_MONOTONIC.
  uint64_t finished_ns = 0;
};
// Gets the batch back; where only the device knew how many rows masked groups have, `segments` now say so.
using BatchDone = std::function<void(Batch, BatchResult)>;

// What a test can make happen to the next batch.
enum class DeviceFault : uint8_t { kIllegalAccess, kHang };

// What a job is told whose work failed: RESOURCE_EXHAUSTED is kOutOfMemory, OUT_OF_RANGE kRegionShrank, UNIMPLEMENTED
// kUnsupported, each of `field`; DATA_LOSS is kDeviceLost, anything else kDeviceFailed, of the device, and got is the
// code. Of OK: kNone.
Reason FailureReason(JobField field, const absl::Status& status);

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceTraits& traits() const = 0;

  // Imports a region; kDeviceIpc comes without a descriptor. Any thread. Errors: INVALID_ARGUMENT (unsealed, too short,
  // wrong type of descriptor, memory of another device), FAILED_PRECONDITION (memory that this process cannot reach,
  // and what to do), RESOURCE_EXHAUSTED.
  virtual absl::StatusOr<std::shared_ptr<DeviceMemory>> Map(const RegionSpec& spec, UniqueFd fd) = 0;

  // Allocates zeroed memory for a resident tensor or a pool. Any thread. Errors: RESOURCE_EXHAUSTED.
  virtual absl::StatusOr<Allocation> Allocate(uint64_t byte_size) = 0;

  // Makes the kernels of a shape ready; waits until they are. Any thread but the worker's loop.
  virtual absl::StatusOr<PrepareResult> Prepare(const PrepareShape& shape) = 0;

  // Starts a batch. Worker's loop only, at most traits().max_batches_in_flight unfinished. `done` is called exactly
  // once, from any thread, possibly before Submit returns (small batches may be computed right here).
  virtual void Submit(Batch batch, BatchDone done) = 0;

  // Returns when every submitted batch is done.
  virtual void Wait() = 0;

  // Predicted time of a batch of one on an idle device, in nanoseconds; for scheduling. Worker's loop only.
  virtual uint64_t PredictNanos(const Gemm& gemm) const = 0;

  // Not OK once a failure is beyond repair inside this process: the worker must exit (kExitDeviceFault).
  virtual absl::Status Healthy() const = 0;

  // For tests: the next batch meets this fault. Worker's loop only. A device that computes in this process crashes it,
  // or never returns from here.
  virtual void InjectFault(DeviceFault fault);
};

}  // namespace gemmd

#endif  // GEMMD_GPU_DEVICE_H_
