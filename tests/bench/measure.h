// SPDX-License-Identifier: Apache-2.0
// What programs that measure share: quantiles, stop watch, and the stages of a response. They end at the first error.
#ifndef GEMMD_TESTS_BENCH_MEASURE_H_
#define GEMMD_TESTS_BENCH_MEASURE_H_

#include "gemmd/v1/gemm.pb.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

using Json = nlohmann::ordered_json;

// Requires: `values` is not empty. Changes their order.
inline double Quantile(std::vector<double>& values, double quantile) {
  const auto rank = static_cast<std::ptrdiff_t>(quantile * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

inline double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

inline void OkOrDie(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T ValueOrDie(absl::StatusOr<T> value, const char* what) {
  OkOrDie(value.status(), what);
  return *std::move(value);
}

double MicrosecondsOf(const auto& call) {
  const absl::Time start = absl::Now();
  call();
  return absl::ToDoubleMicroseconds(absl::Now() - start);
}

// What the daemon says of its share: one list of microseconds per stage.
using Stages = std::map<std::string, std::vector<double>>;

inline void AddStages(const v1::StageTimes& times, Stages& stages) {
  stages["decode"].push_back(static_cast<double>(times.decode_ns()) / 1e3);
  stages["queue"].push_back(static_cast<double>(times.queue_ns()) / 1e3);
  stages["device"].push_back(static_cast<double>(times.device_ns()) / 1e3);
  stages["reply"].push_back(static_cast<double>(times.reply_ns()) / 1e3);
}

inline Json Medians(const Stages& stages) {
  Json medians;
  for (const auto& [stage, microseconds] : stages) medians[stage] = Median(microseconds);
  return medians;
}

}  // namespace gemmd

#endif  // GEMMD_TESTS_BENCH_MEASURE_H_
