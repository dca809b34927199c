// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/gemm_config.h"

#include "gtest/gtest.h"

#include <set>
#include <string>
#include <vector>

namespace gemmd {
namespace {

constexpr int kH100Sms = 132;

GemmShape Dense(int64_t m, int64_t n, int64_t k) {
  GemmShape shape;
  shape.n = n;
  shape.k = k;
  shape.rows = {m};
  return shape;
}

std::string Chosen(const GemmShape& shape) { return Describe(SelectConfig(shape, kH100Sms).traits); }

// Choices that are meant; a change of model or table that moves one of them should say why.
TEST(GemmConfigTest, ChoosesWhatWasMeasuredToBeFast) {
  EXPECT_EQ(Chosen(Dense(1, 7168, 2048)), "16x64 swap s16");
  EXPECT_EQ(Chosen(Dense(1, 2112, 7168)), "16x64 swap s16");
  EXPECT_EQ(Chosen(Dense(64, 4096, 7168)), "32x64 swap s16");
  EXPECT_EQ(Chosen(Dense(512, 4096, 7168)), "128x128 s5");
  EXPECT_EQ(Chosen(Dense(4096, 2112, 7168)), "128x192 s4");
  EXPECT_EQ(Chosen(Dense(4096, 7168, 16384)), "256x128 a2 s3");
}

TEST(GemmConfigTest, ChoosesForGroups) {
  GemmShape shape{KernelScaling::kRowBlock, KernelOutput::kBf16, Grouping::kRows, 4096, 7168, {}};
  const auto chosen = [&](size_t groups, int64_t rows) {
    shape.rows.assign(groups, rows);
    return Chosen(shape);
  };
  EXPECT_EQ(chosen(64, 32), "32x128 swap s10");
  EXPECT_EQ(chosen(32, 256), "256x128 a2 s3");
  EXPECT_EQ(chosen(8, 4096), "256x128 a2 s3");
  shape.n = 7168;
  shape.k = 2048;
  EXPECT_EQ(chosen(32, 4), "16x128 swap s12");
  shape = {KernelScaling::kRowRow, KernelOutput::kF32Add, Grouping::kDepth, 7168, 4096, {}};
  EXPECT_EQ(chosen(8, 4096), "128x128 a2 s5");
}

TEST(GemmConfigTest, ChoosesForOtherTypes) {
  const auto chosen = [](KernelScaling scaling, KernelOutput output, int64_t m, int64_t n, int64_t k) {
    GemmShape shape = Dense(m, n, k);
    shape.scaling = scaling;
    shape.output = output;
    return Chosen(shape);
  };
  EXPECT_EQ(chosen(KernelScaling::kRowRow, KernelOutput::kF32Add, 4096, 7168, 4096), "128x128 a2 s5");
  EXPECT_EQ(chosen(KernelScaling::kRowRow, KernelOutput::kF32, 1024, 2112, 7168), "128x64 b2 s7");
  EXPECT_EQ(chosen(KernelScaling::kBf16, KernelOutput::kBf16, 64, 4096, 7168), "32x64 swap s16");
  EXPECT_EQ(chosen(KernelScaling::kBf16, KernelOutput::kBf16, 4096, 4096, 7168), "256x128 a2 s4");
  EXPECT_EQ(chosen(KernelScaling::kRowBlock, KernelOutput::kF32, 64, 7168, 2048), "64x64 swap s12");
  EXPECT_EQ(chosen(KernelScaling::kRowBlock, KernelOutput::kF32, 4096, 7168, 2048), "256x128 a2 s4");
}

TEST(GemmConfigTest, FewRowsAreTheColumnsOfTheTensorCore) {
  for (const int64_t m : {1, 5, 16}) {
    EXPECT_TRUE(SelectConfig(Dense(m, 4096, 4096), kH100Sms).traits.swap) << m;
  }
}

TEST(GemmConfigTest, ClustersShareAOnlyWhereGroupsCannotDiffer) {
  for (const TileChoice& tile : Candidates(KernelScaling::kRowBlock, Grouping::kRows)) {
    EXPECT_NE(tile.multicast, Multicast::kB);
  }
}

TEST(GemmConfigTest, EveryShapeGetsALegalConfiguration) {
  for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kBf16, KernelOutput::kF32, KernelOutput::kF32Add}) {
      for (const Grouping grouping : {Grouping::kDense, Grouping::kRows, Grouping::kDepth}) {
        for (const int64_t m : {0, 1, 100, 5000}) {
          for (const int64_t k : {0, 16, 7168}) {
            const GemmShape shape{scaling, output, grouping, 72, k, {m}};
            EXPECT_TRUE(SelectConfig(shape, kH100Sms).traits.legal());
            EXPECT_TRUE(FallbackConfig(shape).traits.legal());
          }
        }
      }
    }
  }
}

TEST(GemmConfigTest, WhatIsSelectedIsAmongWhatIsCompiledInTests) {
  std::set<std::string> compiled;
  for (const GemmTraits& traits : SelectableTraits()) compiled.insert(ExpressionOf(traits));
  for (const int64_t m : {1, 33, 64, 129, 1000, 4096}) {
    for (const int64_t n : {576, 2112, 7168}) {
      EXPECT_EQ(compiled.count(ExpressionOf(SelectConfig(Dense(m, n, 7168), kH100Sms).traits)), 1u) << m << " " << n;
    }
  }
}

TEST(GemmConfigTest, BoxesGoInBatchesThatFillSlabAndBuffers) {
  for (const GemmTraits& traits : SelectableTraits()) {
    const int batch = traits.boxes_per_batch();
    ASSERT_GE(batch, 1) << Describe(traits);
    EXPECT_EQ(traits.boxes_per_slab() % batch, 0) << Describe(traits);
    EXPECT_EQ(traits.store_buffers % batch, 0) << Describe(traits);
    EXPECT_EQ(traits.boxes_per_slab() * traits.box_columns(), traits.swap ? kSlabRows : traits.block_n);
    // While one batch is on its way, the next one is written, or is not due before the next tile.
    const bool next_tile = traits.slabs() == 1 && batch == traits.boxes_per_slab();
    EXPECT_TRUE(batch == 1 || traits.store_buffers / batch >= 2 || next_tile) << Describe(traits);
  }
}

TEST(GemmConfigTest, ASlabOfBf16GoesInOneBatch) {
  const auto traits = [](int block_m, int block_n, KernelOutput output) {
    return TraitsOf({block_m, block_n, false, Multicast::kNone}, KernelScaling::kRowBlock, output, Grouping::kDense);
  };
  for (const int block_n : {64, 96, 128, 160, 192}) {
    const GemmTraits narrow = traits(128, block_n, KernelOutput::kBf16);
    EXPECT_EQ(narrow.boxes_per_batch(), narrow.boxes_per_slab()) << block_n;
    EXPECT_GE(narrow.stages, 4) << block_n;
  }
  const GemmTraits large = traits(256, 128, KernelOutput::kBf16);
  EXPECT_EQ(large.boxes_per_batch(), large.boxes_per_slab());
  EXPECT_EQ(large.store_buffers, large.slabs() * large.boxes_per_slab());
  EXPECT_EQ(large.stages, 3);
  EXPECT_EQ(traits(256, 128, KernelOutput::kF32).stages, 4) << "there is no room for all";
}

TEST(GemmConfigTest, MoreWorkIsPredictedToTakeLonger) {
  const GemmTraits traits = FallbackConfig(Dense(1, 1, 1)).traits;
  EXPECT_LT(PredictNanos(Dense(1024, 4096, 4096), traits, kH100Sms),
            PredictNanos(Dense(4096, 4096, 4096), traits, kH100Sms));
}

}  // namespace
}  // namespace gemmd
