// SPDX-License-Identifier: Apache-2.0
#include "gpu/in_flight_outputs.h"

#include "tests/gpu/fake_device.h"

#include <gtest/gtest.h>

#include <memory>

namespace gemmd {
namespace {

Gemm JobWithOutput(uint64_t offset, int64_t byte_size) {
  Gemm gemm;
  Operand& d = gemm.operand(OperandIndex::kD);
  d.region = 1;
  d.offset = offset;
  d.dtype = DType::kU8;
  d.rank = 1;
  d.shape = {byte_size, 0, 0};
  d.strides = {1, 0, 0};
  return gemm;
}

TEST(InFlightOutputsTest, ASecondOutputOnTheSameBytesIsRefusedUntilTheFirstIsRemoved) {
  InFlightOutputs outputs;
  const Gemm gemm = JobWithOutput(64, 64);
  EXPECT_EQ(outputs.Add(gemm).rule, Rule::kNone);
  const Reason reason = outputs.Add(JobWithOutput(127, 1));
  EXPECT_EQ(reason.rule, Rule::kOverlapsInFlight);
  EXPECT_EQ(reason.field, JobField::kD);
  outputs.Remove(gemm);
  EXPECT_EQ(outputs.Add(JobWithOutput(127, 1)).rule, Rule::kNone);
}

TEST(InFlightOutputsTest, NeighboursDoNotOverlap) {
  InFlightOutputs outputs;
  EXPECT_EQ(outputs.Add(JobWithOutput(64, 64)).rule, Rule::kNone);
  EXPECT_EQ(outputs.Add(JobWithOutput(0, 64)).rule, Rule::kNone);
  EXPECT_EQ(outputs.Add(JobWithOutput(128, 64)).rule, Rule::kNone);
  EXPECT_EQ(outputs.Add(JobWithOutput(100, 0)).rule, Rule::kNone);
  EXPECT_EQ(outputs.size(), 3u);
}

TEST(InFlightOutputsTest, ALongOutputThatStartsFarBeforeIsFound) {
  InFlightOutputs outputs;
  EXPECT_EQ(outputs.Add(JobWithOutput(0, 100000)).rule, Rule::kNone);
  for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(outputs.Add(JobWithOutput(200000 + i * 10, 10)).rule, Rule::kNone);
  EXPECT_EQ(outputs.Add(JobWithOutput(99999, 10)).rule, Rule::kOverlapsInFlight);
}

TEST(InFlightOutputsTest, ScaleFactorsOfQuantizeAreOutputsToo) {
  InFlightOutputs outputs;
  Gemm quantize = JobWithOutput(0, 64);
  quantize.operand(OperandIndex::kSfd) = JobWithOutput(512, 64).operand(OperandIndex::kD);
  EXPECT_EQ(outputs.Add(JobWithOutput(512, 8)).rule, Rule::kNone);
  EXPECT_EQ(outputs.Add(quantize).field, JobField::kSfd);
  EXPECT_EQ(outputs.size(), 1u);  // Nothing of a refused job stays.
}

}  // namespace
}  // namespace gemmd
