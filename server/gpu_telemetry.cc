// SPDX-License-Identifier: Apache-2.0
#include "server/gpu_telemetry.h"

#include "proto/job_ring.h"
#include "server/metric_family.h"

#include "absl/container/btree_set.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "spdlog/spdlog.h"

#include <array>
#include <utility>

namespace gemmd {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr char kGpuPrefix[] = "GPU-";
// The driver renews its own numbers about ten times a second.
constexpr absl::Duration kPeriod = absl::Seconds(1);
// Older numbers say nothing about now.
constexpr uint64_t kStaleNanos = 10'000'000'000;

constexpr double kMega = 1e6;
constexpr double kMilli = 1e-3;
constexpr double kPercent = 1e-2;

// Bits of nvmlDeviceGetCurrentClocksThrottleReasons; idle and display clocks are no throttling.
constexpr std::array<std::pair<uint64_t, const char*>, 7> kThrottleReasons = {{{0x02, "application_clocks"},
                                                                               {0x04, "power_cap"},
                                                                               {0x08, "hardware_slowdown"},
                                                                               {0x10, "sync_boost"},
                                                                               {0x20, "software_thermal"},
                                                                               {0x40, "hardware_thermal"},
                                                                               {0x80, "power_brake"}}};

// The answer of a function of NVML; none if it failed.
template <typename Answer>
std::optional<Answer> Ask(int (*function)(NvmlDevice*, Answer*), NvmlDevice* gpu) {
  Answer answer{};
  if (function(gpu, &answer) != kNvmlSuccess) return std::nullopt;
  return answer;
}
template <typename Answer>
std::optional<Answer> Ask(int (*function)(NvmlDevice*, int, Answer*), NvmlDevice* gpu, int which) {
  Answer answer{};
  if (function(gpu, which, &answer) != kNvmlSuccess) return std::nullopt;
  return answer;
}

template <typename Number>
std::optional<double> Times(const std::optional<Number>& number, double factor) {
  if (!number) return std::nullopt;
  return static_cast<double>(*number) * factor;
}

GpuSample SampleOf(const NvmlFunctions& nvml, NvmlDevice* gpu) {
  GpuSample sample;
  sample.sm_clock_hertz = Times(Ask(nvml.clock, gpu, kNvmlClockSm), kMega);
  sample.memory_clock_hertz = Times(Ask(nvml.clock, gpu, kNvmlClockMemory), kMega);
  sample.power_watts = Times(Ask(nvml.power, gpu), kMilli);
  sample.power_limit_watts = Times(Ask(nvml.power_limit, gpu), kMilli);
  sample.energy_joules = Times(Ask(nvml.energy, gpu), kMilli);
  sample.temperature_celsius = Times(Ask(nvml.temperature, gpu, kNvmlTemperatureGpu), 1);
  if (const auto reasons = Ask(nvml.throttle_reasons, gpu)) {
    sample.throttle_bits = *reasons;
  }
  if (const auto utilization = Ask(nvml.utilization, gpu)) {
    sample.utilization_ratio = utilization->gpu * kPercent;
  }
  if (const auto memory = Ask(nvml.memory, gpu)) {
    sample.memory_used_bytes = static_cast<double>(memory->used);
    sample.memory_bytes = static_cast<double>(memory->total);
  }
  return sample;
}

void AddIfKnown(Family& family, MetricLabels labels, const std::optional<double>& value) {
  if (value) family.Add(std::move(labels), *value);
}

struct Quantity {
  MetricType type;
  const char* name;
  const char* help;
  std::optional<double> GpuSample::*value;
};
constexpr std::array<Quantity, 7> kQuantities = {
    {{MetricType::Gauge, "gemmd_gpu_power_watts", "Power that the GPU draws.", &GpuSample::power_watts},
     {MetricType::Gauge, "gemmd_gpu_power_limit_watts", "Power that the GPU may draw.", &GpuSample::power_limit_watts},
     {MetricType::Counter, "gemmd_gpu_energy_joules_total", "Energy since the driver was loaded.",
      &GpuSample::energy_joules},
     {MetricType::Gauge, "gemmd_gpu_temperature_celsius", "Temperature of the GPU.", &GpuSample::temperature_celsius},
     {MetricType::Gauge, "gemmd_gpu_utilization_ratio",
      "Share of the driver's last sampling period in which a kernel ran, of any process.",
      &GpuSample::utilization_ratio},
     {MetricType::Gauge, "gemmd_gpu_memory_used_bytes", "Memory in use, by any process.",
      &GpuSample::memory_used_bytes},
     {MetricType::Gauge, "gemmd_gpu_memory_bytes", "Memory of the GPU.", &GpuSample::memory_bytes}}};

}  // namespace

std::shared_ptr<GpuTelemetry> GpuTelemetry::Start(const std::vector<std::string>& devices, const std::string& library) {
  std::shared_ptr<GpuTelemetry> telemetry(new GpuTelemetry);
  absl::btree_set<std::string> uuids;
  for (const std::string& device : devices) {
    if (absl::StartsWith(device, kGpuPrefix)) uuids.insert(device);
  }
  if (!uuids.empty()) telemetry->Open({uuids.begin(), uuids.end()}, library);
  return telemetry;
}

void GpuTelemetry::Open(const std::vector<std::string>& uuids, const std::string& library) {
  absl::StatusOr<std::unique_ptr<Nvml>> nvml = Nvml::Load(library);
  if (!nvml.ok()) {
    spdlog::warn("no GPU telemetry: {}", nvml.status().ToString());
    return;
  }
  nvml_ = *std::move(nvml);
  const NvmlFunctions& functions = nvml_->functions();
  {
    absl::MutexLock lock(&mutex_);
    for (const std::string& uuid : uuids) {
      Gpu gpu{uuid, nullptr, {}};
      const int error = functions.device_by_uuid(uuid.c_str(), &gpu.handle);
      if (error == kNvmlSuccess) {
        gpus_.push_back(std::move(gpu));
      } else {
        spdlog::warn("no GPU telemetry of {}: {}", uuid, functions.error_string(error));
      }
    }
  }
  Sample();
  thread_ = std::thread([this] { Run(); });
}

GpuTelemetry::~GpuTelemetry() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void GpuTelemetry::Sample() {
  std::vector<Gpu> gpus;
  {
    absl::MutexLock lock(&mutex_);
    gpus = gpus_;
  }
  for (Gpu& gpu : gpus) gpu.sample = SampleOf(nvml_->functions(), gpu.handle);
  absl::MutexLock lock(&mutex_);
  gpus_ = std::move(gpus);
  sampled_ns_ = MonotonicNanos();
}

void GpuTelemetry::Run() {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kPeriod)) return;
    }
    Sample();
  }
}

std::vector<MetricFamily> GpuTelemetry::Collect() const {
  std::vector<Gpu> gpus;
  {
    absl::MutexLock lock(&mutex_);
    if (MonotonicNanos() - sampled_ns_ < kStaleNanos) gpus = gpus_;
  }
  std::vector<MetricFamily> families;
  for (const Quantity& quantity : kQuantities) {
    Family family(quantity.type, quantity.name, quantity.help);
    for (const Gpu& gpu : gpus) AddIfKnown(family, {{"device", gpu.device}}, gpu.sample.*quantity.value);
    families.push_back(family.Take());
  }
  Family clocks(MetricType::Gauge, "gemmd_gpu_clock_hertz", "Clocks of the GPU.");
  Family throttling(MetricType::Gauge, "gemmd_gpu_throttled", "1 while the clocks are held down for this reason.");
  for (const Gpu& gpu : gpus) {
    AddIfKnown(clocks, {{"device", gpu.device}, {"clock", "sm"}}, gpu.sample.sm_clock_hertz);
    AddIfKnown(clocks, {{"device", gpu.device}, {"clock", "memory"}}, gpu.sample.memory_clock_hertz);
    if (!gpu.sample.throttle_bits) continue;
    for (const auto& [bit, reason] : kThrottleReasons) {
      throttling.Add({{"device", gpu.device}, {"reason", reason}}, (*gpu.sample.throttle_bits & bit) != 0 ? 1.0 : 0.0);
    }
  }
  families.push_back(clocks.Take());
  families.push_back(throttling.Take());
  return families;
}

}  // namespace gemmd
