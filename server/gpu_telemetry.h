// SPDX-License-Identifier: Apache-2.0
// Clocks, power, heat and memory of the GPUs that workers run on, as Prometheus metrics. A thread asks the driver once
// a second; a scrape only copies, so a driver that does not answer cannot hold it up.
#ifndef GEMMD_SERVER_GPU_TELEMETRY_H_
#define GEMMD_SERVER_GPU_TELEMETRY_H_

#include "server/nvml.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {

inline constexpr char kNvmlLibrary[] = "libnvidia-ml.so.1";

// What one GPU said; a quantity that it does not offer is absent.
struct GpuSample {
  std::optional<double> sm_clock_hertz;
  std::optional<double> memory_clock_hertz;
  std::optional<double> power_watts;
  std::optional<double> power_limit_watts;
  std::optional<double> energy_joules;
  std::optional<double> temperature_celsius;
  std::optional<double> utilization_ratio;
  std::optional<double> memory_used_bytes;
  std::optional<double> memory_bytes;
  std::optional<uint64_t> throttle_bits;
};

// Thread-safe.
class GpuTelemetry : public prometheus::Collectable {
 public:
  // `devices`: those of the workers; the ones that are no GPU are left out, and without a GPU nothing is loaded. Says
  // once in the log why there is no telemetry, if so. The first sample is there on return.
  static std::shared_ptr<GpuTelemetry> Start(const std::vector<std::string>& devices, const std::string& library);
  // Waits for the answer of a driver that is being asked.
  ~GpuTelemetry() override;

  // All families, with a series for what each GPU said in the last ten seconds.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct Gpu {
    std::string device;  // UUID.
    NvmlDevice* handle = nullptr;
    GpuSample sample;
  };

  GpuTelemetry() = default;
  void Open(const std::vector<std::string>& uuids, const std::string& library);
  void Sample();
  void Run();

  std::unique_ptr<Nvml> nvml_;  // Null without GPUs or without NVML.
  mutable absl::Mutex mutex_;
  std::vector<Gpu> gpus_ ABSL_GUARDED_BY(mutex_);
  uint64_t sampled_ns_ ABSL_GUARDED_BY(mutex_) = 0;  // CLOCK_MONOTONIC.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_GPU_TELEMETRY_H_
