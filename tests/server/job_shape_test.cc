// SPDX-License-Identifier: Apache-2.0
#include "server/job_shape.h"

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>

namespace gemmd {
namespace {

void Set(JobDescriptor& job, OperandIndex index, std::initializer_list<int64_t> shape) {
  OperandDescriptor& operand = job.operand(index);
  operand.rank = static_cast<uint8_t>(shape.size());
  int i = 0;
  for (const int64_t extent : shape) operand.shape[i++] = extent;
}

void ExpectShape(const JobDescriptor& job, const JobShape& expected) {
  const JobShape shape = ShapeOf(job);
  EXPECT_EQ(shape.m, expected.m);
  EXPECT_EQ(shape.n, expected.n);
  EXPECT_EQ(shape.k, expected.k);
  EXPECT_EQ(shape.groups, expected.groups);
}

TEST(JobShapeTest, EachOperationHasItsOwnPlaces) {
  JobDescriptor dense;
  dense.op = Op::kDense;
  Set(dense, OperandIndex::kA, {2, 5});
  Set(dense, OperandIndex::kB, {3, 5});
  ExpectShape(dense, {2, 3, 5, 0});

  JobDescriptor masked;
  masked.op = Op::kMGroupedMasked;
  Set(masked, OperandIndex::kA, {7, 2, 5});
  Set(masked, OperandIndex::kB, {7, 3, 5});
  ExpectShape(masked, {2, 3, 5, 7});

  JobDescriptor contiguous;
  contiguous.op = Op::kMGroupedContiguous;
  Set(contiguous, OperandIndex::kA, {2, 5});
  Set(contiguous, OperandIndex::kB, {7, 3, 5});
  ExpectShape(contiguous, {2, 3, 5, 7});

  JobDescriptor k_grouped;
  k_grouped.op = Op::kKGrouped;
  Set(k_grouped, OperandIndex::kA, {2 * 5});
  Set(k_grouped, OperandIndex::kD, {7, 2, 3});
  ExpectShape(k_grouped, {2, 3, 5, 7});

  JobDescriptor quantize;
  quantize.op = Op::kQuantize;
  Set(quantize, OperandIndex::kA, {2, 5});
  ExpectShape(quantize, {2, 0, 5, 0});
}

TEST(JobShapeTest, NoDescriptorIsTooWrong) {
  for (int byte = 0; byte < 256; ++byte) {
    JobDescriptor job;
    std::memset(static_cast<void*>(&job), byte, sizeof(job));
    for (int op = 0; op < 256; ++op) {
      job.op = static_cast<Op>(op);
      ShapeOf(job);
    }
  }
}

}  // namespace
}  // namespace gemmd
