// SPDX-License-Identifier: Apache-2.0
#include "server/job_shape.h"

namespace gemmd {
namespace {

// Dimension `from_last` counted from the innermost one.
int64_t Dimension(const OperandDescriptor& operand, int from_last) {
  const int index = operand.rank - 1 - from_last;
  return operand.rank > kMaxRank || index < 0 ? 0 : operand.shape[index];
}

}  // namespace

JobShape ShapeOf(const JobDescriptor& job) {
  const OperandDescriptor& a = job.operand(OperandIndex::kA);
  const OperandDescriptor& b = job.operand(OperandIndex::kB);
  const OperandDescriptor& d = job.operand(OperandIndex::kD);
  JobShape shape{.m = Dimension(a, 1), .n = Dimension(b, 1), .k = Dimension(a, 0)};
  switch (job.op) {
    case Op::kMGroupedContiguous:
    case Op::kMGroupedMasked:
      shape.groups = Dimension(b, 2);
      break;
    case Op::kKGrouped:
      // A is flat: the K of all groups one after another.
      shape = {.m = Dimension(d, 1), .n = Dimension(d, 0), .groups = Dimension(d, 2)};
      shape.k = shape.m > 0 ? Dimension(a, 0) / shape.m : 0;
      break;
    default:
      break;
  }
  return shape;
}

}  // namespace gemmd
