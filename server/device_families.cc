// SPDX-License-Identifier: Apache-2.0
#include "server/device_families.h"

#include "server/metric_family.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>

namespace gemmd {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr std::array<std::pair<WorkerState, const char*>, 4> kWorkerStates = {
    {{WorkerState::kStarting, "starting"},
     {WorkerState::kReady, "ready"},
     {WorkerState::kDead, "dead"},
     {WorkerState::kQuarantined, "quarantined"}}};
constexpr std::array<Op, 4> kProducts = {Op::kDense, Op::kMGroupedContiguous, Op::kMGroupedMasked, Op::kKGrouped};
constexpr std::array<Op, 7> kDeviceOps = {
    Op::kDense, Op::kMGroupedContiguous, Op::kMGroupedMasked, Op::kKGrouped, Op::kQuantize, Op::kCopy, Op::kTranspose};
constexpr std::array<ProductType, kProductTypes> kTypes = {ProductType::kE4m3, ProductType::kBf16};

struct DeviceSum {
  std::map<WorkerState, uint64_t> states;
  std::array<uint64_t, kRestartReasonCount> restarts{};
  uint64_t jobs_in_flight = 0;
  uint64_t oldest_job_ns = 0;
  WorkerCounts counts;
  WorkerGauges gauges;
};
using Devices = std::map<std::string, DeviceSum>;

Devices SumUp(const std::vector<WorkerSnapshot>& workers) {
  Devices devices;
  for (const WorkerSnapshot& worker : workers) {
    DeviceSum& device = devices[worker.traits.device];
    ++device.states[worker.state];
    for (size_t i = 0; i < kRestartReasonCount; ++i) device.restarts[i] += worker.restarts_by_reason[i];
    device.jobs_in_flight += worker.jobs_in_flight;
    device.oldest_job_ns = std::max(device.oldest_job_ns, worker.oldest_job_ns);
    AddTo(device.counts, worker.counts);
    device.gauges.queued_jobs += worker.gauges.queued_jobs;
    device.gauges.queued_ns += worker.gauges.queued_ns;
    device.gauges.kernels += worker.gauges.kernels;
    device.gauges.kernel_bytes += worker.gauges.kernel_bytes;
    device.gauges.compiles_waiting += worker.gauges.compiles_waiting;
    // One device, one peak, however many workers run on it.
    for (size_t i = 0; i < kProductTypes; ++i) {
      device.gauges.peak_flops[i] = std::max(device.gauges.peak_flops[i], worker.gauges.peak_flops[i]);
    }
    device.gauges.peak_memory_bytes = std::max(device.gauges.peak_memory_bytes, worker.gauges.peak_memory_bytes);
  }
  return devices;
}

std::string Text(absl::string_view text) { return std::string(text); }

double Seconds(uint64_t nanos) { return static_cast<double>(nanos) / kNanosPerSecond; }

// A family with one series for each device.
template <typename Value>
MetricFamily OnePerDevice(const Devices& devices, MetricType type, const char* name, const char* help, Value value) {
  Family family(type, name, help);
  for (const auto& [device, sum] : devices) family.Add({{"device", device}}, value(sum));
  return family.Take();
}

// A family with one series for each device and value of an enum that counts from 0.
template <size_t kCount, typename Enum>
MetricFamily OnePerValue(const Devices& devices, const char* name, const char* help, const char* label,
                         uint64_t (WorkerCounts::*counts)[kCount]) {
  Family family(MetricType::Counter, name, help);
  for (const auto& [device, sum] : devices) {
    for (size_t i = 0; i < kCount; ++i) {
      family.Add({{"device", device}, {label, Text(Name(static_cast<Enum>(i)))}}, (sum.counts.*counts)[i]);
    }
  }
  return family.Take();
}

void AddWorkers(const Devices& devices, std::vector<MetricFamily>& families) {
  Family state(MetricType::Gauge, "gemmd_worker_state", "Workers of a device in each state.");
  Family restarts(MetricType::Counter, "gemmd_worker_restarts_total",
                  "Worker processes started after the first, by how their predecessor ended.");
  for (const auto& [device, sum] : devices) {
    for (const auto& [value, name] : kWorkerStates) {
      const auto found = sum.states.find(value);
      state.Add({{"device", device}, {"state", name}}, found == sum.states.end() ? uint64_t{0} : found->second);
    }
    for (size_t i = 0; i < kRestartReasonCount; ++i) {
      restarts.Add({{"device", device}, {"reason", Text(Name(static_cast<RestartReason>(i)))}}, sum.restarts[i]);
    }
  }
  families.push_back(state.Take());
  families.push_back(restarts.Take());
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_worker_inflight_requests",
                                  "Jobs given to the workers of a device and not completed.",
                                  [](const DeviceSum& sum) { return sum.jobs_in_flight; }));
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_queue_requests",
                                  "Jobs that wait in the workers for the device.",
                                  [](const DeviceSum& sum) { return sum.gauges.queued_jobs; }));
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_queue_device_seconds",
                                  "Time that the device is predicted to take for the jobs that wait.",
                                  [](const DeviceSum& sum) { return Seconds(sum.gauges.queued_ns); }));
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_queue_oldest_seconds",
                                  "Age of the oldest job given to the workers of a device and not completed; 0: none.",
                                  [](const DeviceSum& sum) { return Seconds(sum.oldest_job_ns); }));
}

void AddWork(const Devices& devices, std::vector<MetricFamily>& families) {
  Family flops(MetricType::Counter, "gemmd_flops_total",
               "2*M*N*K of executed jobs, over the rows that were computed, by what was multiplied.");
  for (const auto& [device, sum] : devices) {
    for (const Op op : kProducts) {
      for (const ProductType type : kTypes) {
        flops.Add({{"device", device}, {"op", Text(Name(op))}, {"dtype", Text(Name(type))}},
                  sum.counts.flops(op, type));
      }
    }
  }
  families.push_back(flops.Take());
  families.push_back(OnePerValue<kDirections, Direction>(
      devices, "gemmd_operand_bytes_total",
      "Bytes of operands that batches read (in) and of results that they wrote (out); weights once per batch.",
      "direction", &WorkerCounts::operand_bytes));
  families.push_back(OnePerValue<kRowKinds, RowKind>(
      devices, "gemmd_rows_total", "Rows of A in executed products: useful, or padding that belongs to no group.",
      "kind", &WorkerCounts::rows));
  families.push_back(OnePerDevice(devices, MetricType::Counter, "gemmd_device_busy_seconds_total",
                                  "Time in which at least one batch was on the device.",
                                  [](const DeviceSum& sum) { return Seconds(sum.counts.busy_ns); }));
  Family peak(MetricType::Gauge, "gemmd_device_peak_flops_per_second",
              "What the device computes at best; no series where that is not known.");
  Family memory(MetricType::Gauge, "gemmd_device_peak_memory_bytes_per_second",
                "What the device's memory delivers at best; no series where that is not known.");
  for (const auto& [device, sum] : devices) {
    for (const ProductType type : kTypes) {
      const uint64_t value = sum.gauges.peak_flops[static_cast<size_t>(type)];
      if (value > 0) peak.Add({{"device", device}, {"dtype", Text(Name(type))}}, value);
    }
    if (sum.gauges.peak_memory_bytes > 0) memory.Add({{"device", device}}, sum.gauges.peak_memory_bytes);
  }
  families.push_back(peak.Take());
  families.push_back(memory.Take());
}

void AddBatches(const Devices& devices, std::vector<MetricFamily>& families) {
  Family duration(MetricType::Histogram, "gemmd_batch_duration_seconds",
                  "From the launch of a batch to its end. Batches overlap on a device.");
  for (const auto& [device, sum] : devices) {
    for (const Op op : kDeviceOps) {
      duration.Add({{"device", device}, {"op", Text(Name(op))}}, sum.counts.batch_duration[static_cast<size_t>(op)]);
    }
  }
  families.push_back(duration.Take());
  families.push_back(OnePerDevice(devices, MetricType::Histogram, "gemmd_batch_requests",
                                  "Jobs in one batch; copies are not counted.",
                                  [](const DeviceSum& sum) { return sum.counts.batch_jobs; }));
  families.push_back(OnePerDevice(devices, MetricType::Histogram, "gemmd_batch_groups",
                                  "Groups with rows in one batch; 1 for operations without groups.",
                                  [](const DeviceSum& sum) { return sum.counts.batch_groups; }));
  families.push_back(OnePerDevice(devices, MetricType::Histogram, "gemmd_batch_rows", "Rows of A in one batch.",
                                  [](const DeviceSum& sum) { return sum.counts.batch_rows; }));
  families.push_back(OnePerValue<kBatchCloses, BatchClose>(
      devices, "gemmd_batch_closed_total", "Batches by what kept further jobs out of them; copies are not counted.",
      "reason", &WorkerCounts::batch_closes));
}

void AddKernels(const Devices& devices, std::vector<MetricFamily>& families) {
  families.push_back(OnePerDevice(devices, MetricType::Counter, "gemmd_kernel_cache_hits_total",
                                  "Products that ran the kernel selected for their shape.",
                                  [](const DeviceSum& sum) { return sum.counts.kernel_hits; }));
  families.push_back(OnePerDevice(devices, MetricType::Counter, "gemmd_kernel_cache_misses_total",
                                  "Products that ran the general kernel, because theirs was not ready.",
                                  [](const DeviceSum& sum) { return sum.counts.kernel_misses; }));
  families.push_back(OnePerDevice(devices, MetricType::Counter, "gemmd_kernel_cache_loads_total",
                                  "Kernels that came from disk instead of being compiled.",
                                  [](const DeviceSum& sum) { return sum.counts.kernel_loads; }));
  families.push_back(OnePerDevice(devices, MetricType::Counter, "gemmd_kernel_cache_evictions_total",
                                  "Kernels removed from disk to stay within the bound.",
                                  [](const DeviceSum& sum) { return sum.counts.kernel_evictions; }));
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_kernel_cache_entries", "Kernels in memory.",
                                  [](const DeviceSum& sum) { return sum.gauges.kernels; }));
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_kernel_cache_bytes", "Bytes of these kernels.",
                                  [](const DeviceSum& sum) { return sum.gauges.kernel_bytes; }));
  Family compiles(MetricType::Counter, "gemmd_kernel_compiles_total", "Kernel compilations that ended.");
  for (const auto& [device, sum] : devices) {
    compiles.Add({{"device", device}, {"result", "ok"}}, sum.counts.compiles_ok);
    compiles.Add({{"device", device}, {"result", "failed"}}, sum.counts.compiles_failed);
  }
  families.push_back(compiles.Take());
  families.push_back(OnePerDevice(devices, MetricType::Histogram, "gemmd_kernel_compile_duration_seconds",
                                  "Time of one kernel compilation.",
                                  [](const DeviceSum& sum) { return sum.counts.compile_duration; }));
  families.push_back(OnePerDevice(devices, MetricType::Gauge, "gemmd_kernel_compile_queue",
                                  "Kernel compilations that wait for a thread.",
                                  [](const DeviceSum& sum) { return sum.gauges.compiles_waiting; }));
}

void AddErrors(const Devices& devices, std::vector<MetricFamily>& families) {
  Family errors(MetricType::Counter, "gemmd_cuda_errors_total",
                "Errors that the CUDA driver reported; sticky ones end the worker.");
  for (const auto& [device, sum] : devices) {
    for (size_t i = 0; i < kDeviceErrorClasses; ++i) {
      const std::string name = Text(Name(static_cast<DeviceErrorClass>(i)));
      errors.Add({{"device", device}, {"class", name}, {"sticky", "false"}}, sum.counts.device_errors[i][0]);
      errors.Add({{"device", device}, {"class", name}, {"sticky", "true"}}, sum.counts.device_errors[i][1]);
    }
  }
  families.push_back(errors.Take());
}

}  // namespace

void AddDeviceFamilies(const std::vector<WorkerSnapshot>& workers, std::vector<MetricFamily>& families) {
  const Devices devices = SumUp(workers);
  AddWorkers(devices, families);
  AddWork(devices, families);
  AddBatches(devices, families);
  AddKernels(devices, families);
  AddErrors(devices, families);
}

}  // namespace gemmd
