// SPDX-License-Identifier: Apache-2.0
#include "server/state_collector.h"

#include "server/metrics.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

#include <array>
#include <map>
#include <string>
#include <utility>

namespace gemmd {
namespace {

using Labels = std::vector<prometheus::ClientMetric::Label>;
using prometheus::MetricFamily;
using prometheus::MetricType;

// One family under construction.
class Family {
 public:
  Family(MetricType type, const char* name, const char* help) { family_ = {name, help, type, {}}; }

  Family& Add(Labels labels, double value) {
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    metric.counter.value = value;
    metric.gauge.value = value;
    family_.metric.push_back(std::move(metric));
    return *this;
  }
  Family& Add(Labels labels, uint64_t value) { return Add(std::move(labels), static_cast<double>(value)); }

  MetricFamily Take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

constexpr std::array<std::pair<WorkerState, const char*>, 4> kWorkerStates = {
    {{WorkerState::kStarting, "starting"},
     {WorkerState::kReady, "ready"},
     {WorkerState::kDead, "dead"},
     {WorkerState::kQuarantined, "quarantined"}}};

// Several workers may share a device, so that these count workers.
void AddWorkers(const WorkerPool& pool, std::vector<MetricFamily>& families) {
  std::map<std::string, std::map<WorkerState, uint64_t>> states;
  std::map<std::string, uint64_t> restarts;
  uint64_t queued = 0;
  for (const WorkerSnapshot& worker : pool.Snapshot()) {
    ++states[worker.traits.device][worker.state];
    restarts[worker.traits.device] += worker.restarts;
    queued += worker.jobs_in_flight;
  }
  Family state(MetricType::Gauge, "gemmd_worker_state", "Workers of a device in each state.");
  for (auto& [device, counts] : states) {
    for (const auto& [value, name] : kWorkerStates) {
      state.Add({{"device", device}, {"state", name}}, counts[value]);
    }
  }
  families.push_back(state.Take());
  Family restart(MetricType::Counter, "gemmd_worker_restarts_total", "Worker processes started after the first.");
  for (const auto& [device, count] : restarts) restart.Add({{"device", device}}, count);
  families.push_back(restart.Take());
  families.push_back(Family(MetricType::Gauge, "gemmd_queue_requests", "Jobs given to workers and not completed.")
                         .Add({}, queued)
                         .Take());
}

void AddRegions(const RegionCounts& counts, std::vector<MetricFamily>& families) {
  const Labels host{{"kind", "host"}};
  const Labels shared{{"kind", "shared_memory"}};
  families.push_back(Family(MetricType::Gauge, "gemmd_regions", "Regions that clients share.")
                         .Add(host, counts.host)
                         .Add(shared, counts.shared_memory)
                         .Take());
  families.push_back(Family(MetricType::Gauge, "gemmd_region_bytes", "Bytes of these regions.")
                         .Add(host, counts.host_bytes)
                         .Add(shared, counts.shared_memory_bytes)
                         .Take());
  Family registrations(MetricType::Counter, "gemmd_region_registrations_total", "Attempts to register a region.");
  for (size_t code = 0; code < kStatusCodeCount; ++code) {
    const std::string result(Name(static_cast<absl::StatusCode>(code)));
    registrations.Add({host[0], {"result", result}}, counts.host_registrations_total[code])
        .Add({shared[0], {"result", result}}, counts.shared_memory_registrations_total[code]);
  }
  families.push_back(registrations.Take());
  families.push_back(
      Family(MetricType::Counter, "gemmd_regions_reaped_total", "Regions closed because their session ended.")
          .Add({}, counts.reaped_total)
          .Take());
}

void AddTensors(const TensorCounts& counts, std::vector<MetricFamily>& families) {
  families.push_back(Family(MetricType::Gauge, "gemmd_tensors", "Resident tensors.")
                         .Add({{"visibility", "private"}}, counts.private_tensors)
                         .Add({{"visibility", "shared"}}, counts.shared_tensors)
                         .Take());
  families.push_back(
      Family(MetricType::Gauge, "gemmd_tensor_bytes", "Bytes of resident tensors.").Add({}, counts.bytes).Take());
}

void AddSessions(const SessionCounts& counts, std::vector<MetricFamily>& families) {
  families.push_back(Family(MetricType::Gauge, "gemmd_sessions", "Open sessions.")
                         .Add({{"origin", "local"}}, counts.open_local)
                         .Add({{"origin", "remote"}}, counts.open_remote)
                         .Take());
  families.push_back(Family(MetricType::Counter, "gemmd_sessions_opened_total", "Sessions opened.")
                         .Add({}, counts.opened_total)
                         .Take());
  families.push_back(Family(MetricType::Counter, "gemmd_sessions_refused_total", "Sessions refused at a quota.")
                         .Add({}, counts.refused_total)
                         .Take());
  families.push_back(Family(MetricType::Counter, "gemmd_unauthenticated_total", "Calls with wrong session credentials.")
                         .Add({}, counts.unauthenticated_total)
                         .Take());
}

}  // namespace

std::vector<MetricFamily> StateCollector::Collect() const {
  std::vector<MetricFamily> families;
  AddWorkers(sources_.pool, families);
  AddRegions(sources_.regions.Counts(), families);
  AddTensors(sources_.tensors.Counts(), families);
  AddSessions(sources_.sessions.Counts(), families);
  families.push_back(Family(MetricType::Gauge, "gemmd_arena_bytes", "Size of the staging arena.")
                         .Add({}, sources_.arena.byte_size())
                         .Take());
  families.push_back(Family(MetricType::Gauge, "gemmd_arena_used_bytes", "Bytes of it in use.")
                         .Add({}, sources_.arena.bytes_in_use())
                         .Take());
  return families;
}

}  // namespace gemmd
