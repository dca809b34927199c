// SPDX-License-Identifier: Apache-2.0
// How much memory of a GPU is in use, by any process, as its driver says at this moment (the daemon's own metric is up
// to a second old). Used by gpu_memory_bench and fault tests.
#ifndef GEMMD_TESTS_BENCH_DEVICE_MEMORY_METER_H_
#define GEMMD_TESTS_BENCH_DEVICE_MEMORY_METER_H_

#include "client/cuda_driver.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace gemmd {

// Keeps the GPU's primary context, so that what this process takes stays the same. Thread-safe.
class DeviceMemoryMeter {
 public:
  // Errors: FAILED_PRECONDITION (no driver, or one without cuMemGetInfo), NOT_FOUND (no GPU `uuid`).
  static absl::StatusOr<std::unique_ptr<DeviceMemoryMeter>> Open(absl::string_view uuid);
  DeviceMemoryMeter(const DeviceMemoryMeter&) = delete;
  DeviceMemoryMeter& operator=(const DeviceMemoryMeter&) = delete;
  ~DeviceMemoryMeter();

  absl::StatusOr<int64_t> UsedBytes() const;

 private:
  using MemoryInfo = int (*)(size_t* free_bytes, size_t* total_bytes);

  DeviceMemoryMeter(std::shared_ptr<const CudaDriver> driver, MemoryInfo memory_info, int device);

  const std::shared_ptr<const CudaDriver> driver_;
  const MemoryInfo memory_info_;
  const int device_;
  cuda::Context context_ = nullptr;
};

}  // namespace gemmd

#endif  // GEMMD_TESTS_BENCH_DEVICE_MEMORY_METER_H_
