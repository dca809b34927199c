// SPDX-License-Identifier: Apache-2.0
#include "server/state_collector.h"

#include "server/device_families.h"
#include "server/metric_family.h"
#include "server/metrics.h"

#include <prometheus/metric_type.h>

#include <string>
#include <utility>

namespace gemmd {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

void AddRegions(const RegionCounts& counts, std::vector<MetricFamily>& families) {
  Family regions(MetricType::Gauge, "gemmd_regions", "Regions that clients share.");
  Family bytes(MetricType::Gauge, "gemmd_region_bytes", "Bytes of these regions.");
  Family registrations(MetricType::Counter, "gemmd_region_registrations_total", "Attempts to register a region.");
  Family imports(MetricType::Histogram, "gemmd_region_import_duration_seconds",
                 "How long the workers took to map a region.");
  for (const RegionKind kind : kSharedKinds) {
    const MetricLabels::value_type label{"kind", Name(kind)};
    const RegionKindCounts& of_kind = counts.of(kind);
    regions.Add({label}, of_kind.regions);
    bytes.Add({label}, of_kind.bytes);
    imports.Add({label}, of_kind.imports);
    for (size_t code = 0; code < kStatusCodeCount; ++code) {
      registrations.Add({label, {"result", std::string(Name(static_cast<absl::StatusCode>(code)))}},
                        of_kind.registrations_total[code]);
    }
  }
  families.push_back(regions.Take());
  families.push_back(bytes.Take());
  families.push_back(registrations.Take());
  families.push_back(imports.Take());
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
                         .Add({{"origin", "local"}}, counts.opened_local_total)
                         .Add({{"origin", "remote"}}, counts.opened_remote_total)
                         .Take());
  Family closed(MetricType::Counter, "gemmd_sessions_closed_total", "Sessions that ended, by why.");
  for (size_t i = 0; i < kSessionEndCount; ++i) {
    closed.Add({{"reason", std::string(Name(static_cast<SessionEnd>(i)))}}, counts.closed_total[i]);
  }
  families.push_back(closed.Take());
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
  AddDeviceFamilies(sources_.pool.Snapshot(), families);
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
