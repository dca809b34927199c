// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace gemmd {
namespace {

using ::testing::ElementsAre;

TensorPlan Plan(const TensorWish& wish, const ContentLayout& content) {
  const auto plan = PlanTensor(wish, content);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : TensorPlan();
}

std::string Refusal(const TensorWish& wish, const ContentLayout& content) {
  const auto plan = PlanTensor(wish, content);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(plan.status().message());
}

std::vector<ContentChunk> Chunks(const TensorPlan& plan) {
  std::vector<ContentChunk> chunks = {FirstChunk(plan)};
  while (const auto next = NextChunk(plan, chunks.back())) chunks.push_back(*next);
  return chunks;
}

TEST(TensorPlanTest, ContentAsItIsBecomesCopiesOfBytes) {
  const TensorPlan plan = Plan({}, {DType::kF32, {3, 1'000'000}});
  EXPECT_EQ(plan.tensor.dtype, DType::kF32);
  EXPECT_THAT(plan.tensor.shape, ElementsAre(3, 1'000'000));
  EXPECT_FALSE(plan.scales.has_value());
  const std::vector<ContentChunk> chunks = Chunks(plan);
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(chunks[2].offset + chunks[2].byte_size, 12'000'000u);
  const auto jobs = JobsOf(plan, chunks[1], {{5, 64}, {}, 7, 0});
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0].op, Op::kCopy);
  EXPECT_EQ(jobs[0].operand(OperandIndex::kA).offset, 64u);
  EXPECT_EQ(jobs[0].operand(OperandIndex::kD).region, 7u);
  EXPECT_EQ(jobs[0].operand(OperandIndex::kD).offset, static_cast<uint64_t>(kContentChunkBytes));
}

TEST(TensorPlanTest, TransposedChunksAreColumns) {
  const TensorPlan plan = Plan({.transpose = true}, {DType::kBf16, {2, 5000, 700}});
  EXPECT_THAT(plan.tensor.shape, ElementsAre(2, 700, 5000));
  const std::vector<ContentChunk> chunks = Chunks(plan);
  ASSERT_EQ(chunks.size(), 4u);  // 2995 rows, then the rest, of each of two matrices.
  const auto jobs = JobsOf(plan, chunks[3], {{5, 0}, {}, 7, 0});
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0].op, Op::kTranspose);
  const OperandDescriptor& d = jobs[0].operand(OperandIndex::kD);
  EXPECT_EQ(d.offset, (700u * 5000 + 2995) * 2);
  EXPECT_THAT(d.shape, ElementsAre(700, 2005, 0));
  EXPECT_THAT(d.strides, ElementsAre(5000, 1, 0));
}

TEST(TensorPlanTest, QuantizedTensorHasScalesOfItsBlocks) {
  TensorWish wish{.spec = {DType::kNone, {}, "w", true}, .quantize = QuantizeBlock::k128x128};
  const TensorPlan plan = Plan(wish, {DType::kBf16, {130, 272}});
  EXPECT_EQ(plan.tensor.dtype, DType::kE4m3);
  EXPECT_THAT(plan.scales->shape, ElementsAre(2, 3));
  EXPECT_EQ(plan.scales->dtype, DType::kF32);
  EXPECT_EQ(plan.scales->name, "w.sf");
  EXPECT_TRUE(plan.scales->shared);
  wish.quantize = QuantizeBlock::k1x128;
  EXPECT_THAT(Plan(wish, {DType::kF32, {3, 130, 272}}).scales->shape, ElementsAre(3, 130, 3));
}

TEST(TensorPlanTest, ChunksToQuantizeAreWholeBlocks) {
  // 10,000 columns of 4 bytes: 104 rows would be 4 MiB.
  const TensorPlan plan = Plan({.quantize = QuantizeBlock::k128x128}, {DType::kF32, {300, 10'000}});
  const std::vector<ContentChunk> chunks = Chunks(plan);
  ASSERT_EQ(chunks.size(), 3u);
  const auto jobs = JobsOf(plan, chunks[2], {{5, 0}, {}, 7, 8});
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_THAT(jobs[0].operand(OperandIndex::kD).shape, ElementsAre(44, 10'000, 0));
  EXPECT_THAT(jobs[0].operand(OperandIndex::kSfd).shape, ElementsAre(1, 79, 0));
  EXPECT_EQ(jobs[0].operand(OperandIndex::kSfd).offset, 2u * 79 * 4);
}

TEST(TensorPlanTest, TransposedAndQuantizedGoesThroughScratch) {
  const TensorPlan plan = Plan({.transpose = true, .quantize = QuantizeBlock::k128x128}, {DType::kBf16, {336, 20'000}});
  EXPECT_THAT(plan.tensor.shape, ElementsAre(20'000, 336));
  EXPECT_THAT(plan.scales->shape, ElementsAre(157, 3));
  const std::vector<ContentChunk> chunks = Chunks(plan);
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(ScratchBytes(plan, chunks[2]), 80u * 20'000 * 2);
  const auto jobs = JobsOf(plan, chunks[2], {{5, 0}, {6, 0}, 7, 8});
  ASSERT_EQ(jobs.size(), 2u);
  EXPECT_EQ(jobs[0].op, Op::kTranspose);
  EXPECT_THAT(jobs[0].operand(OperandIndex::kD).shape, ElementsAre(20'000, 80, 0));
  EXPECT_EQ(jobs[1].op, Op::kQuantize);
  EXPECT_EQ(jobs[1].operand(OperandIndex::kA).region, 6u);
  EXPECT_EQ(jobs[1].operand(OperandIndex::kD).offset, 256u);
  EXPECT_THAT(jobs[1].operand(OperandIndex::kSfd).shape, ElementsAre(157, 1, 0));
  EXPECT_EQ(jobs[1].operand(OperandIndex::kSfd).offset, 8u);
}

TEST(TensorPlanTest, WhatWasAskedForMustBeWhatComesOut) {
  EXPECT_EQ(Refusal({.spec = {DType::kBf16, {}, "", false}}, {DType::kF32, {2, 2}}),
            "dtype: expected f32 of this content, got bf16");
  EXPECT_EQ(Refusal({.spec = {DType::kNone, {2, 3}, "", false}, .transpose = true}, {DType::kF32, {2, 3}}),
            "shape: expected [3,2] of this content, got [2,3]");
  EXPECT_TRUE(PlanTensor({.spec = {DType::kF32, {3, 2}, "", false}, .transpose = true}, {DType::kF32, {2, 3}}).ok());
}

TEST(TensorPlanTest, ContentThatCannotBeChangedSoIsRefused) {
  EXPECT_EQ(Refusal({.quantize = QuantizeBlock::k1x128}, {DType::kE4m3, {16, 16}}),
            "quantize: expected content of bf16 or f32, got e4m3");
  EXPECT_EQ(Refusal({.transpose = true}, {DType::kI64, {16, 16}}),
            "transpose: expected content of e4m3, bf16 or f32, got i64");
  EXPECT_EQ(Refusal({.transpose = true}, {DType::kF32, {16}}),
            "transpose: expected content of rank 2 or 3, got rank 1");
  EXPECT_EQ(Refusal({.quantize = QuantizeBlock::k1x128}, {DType::kF32, {16, 20}}),
            "quantize: expected rows of a multiple of 16 elements, got 20");
  EXPECT_EQ(Refusal({}, {DType::kF32, {1, 2, 3, 4}}), "content: expected rank 1 to 3, got rank 4");
  EXPECT_EQ(Refusal({}, {DType::kF32, {0, 2}}), "content: expected extents of at least 1, got [0,2]");
  EXPECT_EQ(Refusal({.transpose = true}, {DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}),
            "content: shape: expected at most 2^62 bytes, got more");
}

}  // namespace
}  // namespace gemmd
