// SPDX-License-Identifier: Apache-2.0
// What gemmctl top shows of the requests that the daemon remembers: how many of each operation were answered in the
// latest while, and where they spent their time.
#ifndef GEMMD_CLIENT_REQUEST_SUMMARY_H_
#define GEMMD_CLIENT_REQUEST_SUMMARY_H_

#include "gemmd/v1/admin.pb.h"

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

// Of one operation. Times in nanoseconds; the stages are means over requests that a device ran.
struct OperationSummary {
  std::string op;
  uint64_t requests = 0;
  uint64_t failed = 0;
  double per_second = 0;
  uint64_t p50_ns = 0;  // Receipt to answer.
  uint64_t p99_ns = 0;
  double queue_ns = 0;
  double device_ns = 0;
  double batch_jobs = 0;  // Mean of the requests, not of the batches.
};

// Of requests answered after `since_ns` (CLOCK_MONOTONIC of the daemon), by operation. Where the daemon forgot some of
// them, rates are those of the time that it remembers.
std::vector<OperationSummary> Summarize(const v1::GetTraceResponse& trace, uint64_t since_ns);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_REQUEST_SUMMARY_H_
