// SPDX-License-Identifier: Apache-2.0
// What gemmload measured, and how it is shown and judged. Plain data and pure functions.
#ifndef GEMMD_CLIENT_LOAD_REPORT_H_
#define GEMMD_CLIENT_LOAD_REPORT_H_

#include "client/latency_histogram.h"

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include <nlohmann/json.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace gemmd {

struct LoadReport {
  static constexpr double kTimelineSeconds = 0.1;
  LatencyHistogram latency;  // From the intended start (open loop) or from sending (closed loop) to the answer.
  LatencyHistogram service;  // From sending to the answer.
  LatencyHistogram late;     // From the intended start to sending: the generator's own delay.
  LatencyHistogram decode;   // Stages, as the server says.
  LatencyHistogram queue;
  LatencyHistogram device;
  LatencyHistogram reply;
  std::map<std::string, int64_t> errors;  // By code.
  std::map<std::string, bool> mps;        // By UUID: GPUs that the server works on, and whether CUDA MPS shares them.
  int64_t succeeded = 0;
  double seconds = 0;             // From the end of the warm-up to the last answer.
  double flops = 0;               // Of what succeeded.
  std::vector<int64_t> timeline;  // What succeeded in each stretch of kTimelineSeconds from the end of the warm-up on.
  double rows = 0;
  double batch_jobs = 0;  // Sum over what succeeded.
  int64_t checked = 0;
  int64_t check_failures = 0;
  std::string first_check_failure;
};

nlohmann::json ToJson(const LoadReport& report);
std::string ToText(const LoadReport& report);
// One line of names and one of values, for spreadsheets.
std::string ToCsv(const LoadReport& report);

// Judges by "p99=2ms" (p50, p90, p99, p99.9, max or mean; several with commas). An empty text is always met.
// Errors: INVALID_ARGUMENT (syntax), FAILED_PRECONDITION (missed, with the value; also if nothing succeeded).
absl::Status CheckObjective(const LoadReport& report, absl::string_view objective);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_LOAD_REPORT_H_
