// SPDX-License-Identifier: Apache-2.0
// The state of workers, regions, tensors and sessions as Prometheus metrics, read at each scrape. Called by the metrics
// listener's thread.
#ifndef GEMMD_SERVER_STATE_COLLECTOR_H_
#define GEMMD_SERVER_STATE_COLLECTOR_H_

#include "server/region_registry.h"
#include "server/session_registry.h"
#include "server/staging_arena.h"
#include "server/tensor_registry.h"
#include "server/worker_pool.h"

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

namespace gemmd {

// All outlive the collector.
struct StateSources {
  const WorkerPool& pool;
  const RegionRegistry& regions;
  const TensorRegistry& tensors;
  const SessionRegistry& sessions;
  const StagingArena& arena;
};

class StateCollector : public prometheus::Collectable {
 public:
  explicit StateCollector(StateSources sources) : sources_(sources) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const StateSources sources_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_STATE_COLLECTOR_H_
