// SPDX-License-Identifier: Apache-2.0
#include "client/request_summary.h"

#include <algorithm>
#include <map>
#include <utility>

namespace gemmd {
namespace {

struct Collected {
  std::vector<uint64_t> totals_ns;
  uint64_t failed = 0;
  uint64_t launched = 0;
  double queue_ns = 0;
  double device_ns = 0;
  double batch_jobs = 0;
};

// The smallest value that `share` of all do not exceed. Requires: not empty, sorted.
uint64_t Quantile(const std::vector<uint64_t>& sorted, double share) {
  const auto rank = static_cast<size_t>(share * static_cast<double>(sorted.size()));
  return sorted[std::min(rank, sorted.size() - 1)];
}

double Difference(uint64_t later_ns, uint64_t earlier_ns) {
  return static_cast<double>(later_ns - std::min(later_ns, earlier_ns));
}

void Collect(const v1::RequestTrace& request, Collected& collected) {
  collected.totals_ns.push_back(request.answered_ns() - request.received_ns());
  if (request.code() != 0) ++collected.failed;
  if (request.launched_ns() == 0) return;
  ++collected.launched;
  collected.queue_ns += Difference(request.launched_ns(), request.submitted_ns());
  collected.device_ns += Difference(request.finished_ns(), request.launched_ns());
  collected.batch_jobs += request.batch_jobs();
}

}  // namespace

std::vector<OperationSummary> Summarize(const v1::GetTraceResponse& trace, uint64_t since_ns) {
  std::map<std::string, Collected> by_op;
  uint64_t oldest_ns = trace.now_ns();
  for (const v1::RequestTrace& request : trace.requests()) {
    oldest_ns = std::min(oldest_ns, request.answered_ns());
    if (request.answered_ns() > since_ns) Collect(request, by_op[request.op()]);
  }
  // The oldest that is remembered came after `since_ns`: there may have been others before it.
  const double seconds = Difference(trace.now_ns(), std::max(oldest_ns, since_ns)) / 1e9;
  std::vector<OperationSummary> summaries;
  for (auto& [op, collected] : by_op) {
    std::sort(collected.totals_ns.begin(), collected.totals_ns.end());
    const auto launched = static_cast<double>(std::max<uint64_t>(collected.launched, 1));
    const uint64_t requests = collected.totals_ns.size();
    summaries.push_back({.op = op,
                         .requests = requests,
                         .failed = collected.failed,
                         .per_second = seconds > 0 ? static_cast<double>(requests) / seconds : 0,
                         .p50_ns = Quantile(collected.totals_ns, 0.5),
                         .p99_ns = Quantile(collected.totals_ns, 0.99),
                         .queue_ns = collected.queue_ns / launched,
                         .device_ns = collected.device_ns / launched,
                         .batch_jobs = collected.batch_jobs / launched});
  }
  return summaries;
}

}  // namespace gemmd
