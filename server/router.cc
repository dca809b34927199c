// SPDX-License-Identifier: Apache-2.0
#include "server/router.h"

#include <algorithm>
#include <cstdint>

namespace gemmd {
namespace {

// What one byte of operands costs compared with one floating-point operation. A Hopper GPU does some 400 FP8 operations
// in the time it reads a byte; queues are compared between workers of one kind, so the exact number does not matter.
constexpr double kFlopsPerByte = 400;
// A launch costs some microseconds whatever the shape.
constexpr double kFlopsPerLaunch = 1e9;

double Elements(const OperandDescriptor& operand) {
  double product = operand.rank == 0 ? 0 : 1;
  for (int i = 0; i < std::min<int>(operand.rank, kMaxRank); ++i) {
    product *= static_cast<double>(std::max<int64_t>(operand.shape[i], 0));
  }
  return product;
}

double Last(const OperandDescriptor& operand) {
  if (operand.rank == 0 || operand.rank > kMaxRank) return 0;
  return static_cast<double>(std::max<int64_t>(operand.shape[operand.rank - 1], 0));
}

}  // namespace

std::optional<int> LeastLoaded(absl::Span<const WorkerLoad> loads) {
  std::optional<int> best;
  for (size_t i = 0; i < loads.size(); ++i) {
    if (!loads[i].ready) continue;
    if (!best || loads[i].work_in_flight < loads[static_cast<size_t>(*best)].work_in_flight) best = static_cast<int>(i);
  }
  return best;
}

double OfferedFlops(const JobDescriptor& job) {
  const OperandDescriptor& a = job.operand(OperandIndex::kA);
  const OperandDescriptor& d = job.operand(OperandIndex::kD);
  switch (job.op) {
    case Op::kDense:
    case Op::kMGroupedContiguous:
    case Op::kMGroupedMasked:
      return 2 * Elements(d) * Last(a);
    case Op::kKGrouped:
      return 2 * Elements(a) * Last(d);
    default:
      return 0;
  }
}

double PredictWork(const JobDescriptor& job) {
  double bytes = 0;
  for (const OperandDescriptor& operand : job.operands) {
    if (operand.region != 0) bytes += Elements(operand) * static_cast<double>(ByteSize(operand.dtype));
  }
  return kFlopsPerLaunch + std::max(OfferedFlops(job), bytes * kFlopsPerByte);
}

}  // namespace gemmd
