// SPDX-License-Identifier: Apache-2.0
// The workers of each device as metric families: how they are, and what they have counted (proto/worker_counters.h).
// Pure; used by the state collector.
#ifndef GEMMD_SERVER_DEVICE_FAMILIES_H_
#define GEMMD_SERVER_DEVICE_FAMILIES_H_

#include "server/worker_pool.h"

#include <prometheus/metric_family.h>

#include <vector>

namespace gemmd {

// Several workers may share a device; their counts are added up.
void AddDeviceFamilies(const std::vector<WorkerSnapshot>& workers, std::vector<prometheus::MetricFamily>& families);

}  // namespace gemmd

#endif  // GEMMD_SERVER_DEVICE_FAMILIES_H_
