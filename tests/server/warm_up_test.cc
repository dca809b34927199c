// SPDX-License-Identifier: Apache-2.0
#include "server/warm_up.h"

#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

v1::WarmUpShape Dense() {
  v1::WarmUpShape shape;
  shape.set_op(v1::WarmUpShape::DENSE);
  shape.set_scaling(v1::SCALING_1D2D);
  shape.set_d_dtype(v1::BF16);
  shape.set_n(16);
  shape.set_k(32);
  return shape;
}

// The error of a request whose second shape is this one.
std::string ErrorOf(const v1::WarmUpShape& shape) {
  v1::WarmUpRequest request;
  *request.add_shapes() = Dense();
  *request.add_shapes() = shape;
  return std::string(ToPrepareShapes(request).status().message());
}

TEST(WarmUpTest, ShapesAreTranslated) {
  v1::WarmUpShape shape = Dense();
  shape.set_op(v1::WarmUpShape::M_GROUPED_CONTIGUOUS);
  shape.set_m(7);
  shape.set_groups(3);
  v1::WarmUpRequest request;
  *request.add_shapes() = shape;
  const auto shapes = ToPrepareShapes(request);
  ASSERT_TRUE(shapes.ok()) << shapes.status();
  ASSERT_EQ(shapes->size(), 1u);
  EXPECT_EQ(shapes->front().op, Op::kMGroupedContiguous);
  EXPECT_EQ(shapes->front().scaling, Scaling::k1D2D);
  EXPECT_EQ(shapes->front().d_dtype, DType::kBf16);
  EXPECT_EQ(shapes->front().m, 7);
  EXPECT_EQ(shapes->front().n, 16);
  EXPECT_EQ(shapes->front().k, 32);
  EXPECT_EQ(shapes->front().groups, 3);
  EXPECT_FALSE(shapes->front().accumulate);
}

TEST(WarmUpTest, OnlyF32OfDenseAndKGroupedMayAdd) {
  v1::WarmUpShape shape = Dense();
  shape.set_accumulate(true);
  const std::string refused = "shapes[1].accumulate: expected false but for F32 of DENSE and K_GROUPED, got true";
  EXPECT_EQ(ErrorOf(shape), refused);
  shape.set_d_dtype(v1::F32);
  EXPECT_EQ(ErrorOf(shape), "");
  shape.set_groups(2);
  shape.set_op(v1::WarmUpShape::M_GROUPED_MASKED);
  EXPECT_EQ(ErrorOf(shape), refused);
  shape.set_op(v1::WarmUpShape::K_GROUPED);
  v1::WarmUpRequest request;
  *request.add_shapes() = shape;
  const auto shapes = ToPrepareShapes(request);
  ASSERT_TRUE(shapes.ok()) << shapes.status();
  EXPECT_TRUE(shapes->front().accumulate);
}

TEST(WarmUpTest, ImpossibleShapesAreNamed) {
  v1::WarmUpShape shape = Dense();
  EXPECT_EQ(ErrorOf(shape), "");
  shape.set_m(-1);
  EXPECT_EQ(ErrorOf(shape), "shapes[1].m: expected at least 0, got -1");
  shape = Dense();
  shape.set_n(0);
  EXPECT_EQ(ErrorOf(shape), "shapes[1].n: expected at least 1, got 0");
  shape = Dense();
  shape.set_k(0);
  EXPECT_EQ(ErrorOf(shape), "shapes[1].k: expected at least 1, got 0");
  shape = Dense();
  shape.set_groups(2);
  EXPECT_EQ(ErrorOf(shape), "shapes[1].groups: expected 0 with DENSE, got 2");
  shape.set_op(v1::WarmUpShape::K_GROUPED);
  shape.set_groups(0);
  EXPECT_EQ(ErrorOf(shape), "shapes[1].groups: expected at least 1, got 0");
  shape.set_op(static_cast<v1::WarmUpShape::Op>(99));
  EXPECT_EQ(ErrorOf(shape), "shapes[1].op: expected an operation, got 99");
  shape = Dense();
  shape.set_scaling(static_cast<v1::Scaling>(99));
  EXPECT_EQ(ErrorOf(shape), "shapes[1].scaling: expected a known value");
}

TEST(WarmUpTest, ThereIsAMostOfShapes) {
  v1::WarmUpRequest request;
  for (int i = 0; i < kMaxWarmUpShapes; ++i) *request.add_shapes() = Dense();
  EXPECT_TRUE(ToPrepareShapes(request).ok());
  *request.add_shapes() = Dense();
  EXPECT_EQ(ToPrepareShapes(request).status().message(), "shapes: expected at most 4096, got 4097");
}

}  // namespace
}  // namespace gemmd
