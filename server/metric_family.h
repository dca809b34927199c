// SPDX-License-Identifier: Apache-2.0
// One metric family under construction, for what is collected at scrape time instead of being counted in a registry.
#ifndef GEMMD_SERVER_METRIC_FAMILY_H_
#define GEMMD_SERVER_METRIC_FAMILY_H_

#include "proto/worker_counters.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace gemmd {

inline constexpr double kNanosPerSecond = 1e9;

using MetricLabels = std::vector<prometheus::ClientMetric::Label>;

class Family {
 public:
  Family(prometheus::MetricType type, const char* name, const char* help) { family_ = {name, help, type, {}}; }

  Family& Add(MetricLabels labels, double value) {
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    metric.counter.value = value;
    metric.gauge.value = value;
    family_.metric.push_back(std::move(metric));
    return *this;
  }
  Family& Add(MetricLabels labels, uint64_t value) { return Add(std::move(labels), static_cast<double>(value)); }

  Family& Add(MetricLabels labels, const DurationCounts& counts) {
    return AddHistogram(std::move(labels), counts, kDurationBoundsNanos, kNanosPerSecond);
  }
  Family& Add(MetricLabels labels, const SizeCounts& counts) {
    return AddHistogram(std::move(labels), counts, kSizeBounds, 1);
  }

  prometheus::MetricFamily Take() { return std::move(family_); }

 private:
  // Values are divided by `unit`.
  template <size_t kBounds>
  Family& AddHistogram(MetricLabels labels, const HistogramCounts<kBounds>& counts,
                       const std::array<uint64_t, kBounds>& bounds, double unit) {
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    uint64_t below = 0;
    for (size_t i = 0; i < kBounds; ++i) {
      below += counts.buckets[i];
      metric.histogram.bucket.push_back({below, static_cast<double>(bounds[i]) / unit});
    }
    metric.histogram.sample_count = below + counts.buckets[kBounds];
    metric.histogram.sample_sum = static_cast<double>(counts.sum) / unit;
    family_.metric.push_back(std::move(metric));
    return *this;
  }

  prometheus::MetricFamily family_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_METRIC_FAMILY_H_
