// SPDX-License-Identifier: Apache-2.0
// The C interface of tests/bench/gemmd_kernels.h, as a program would use it that times our kernels beside another
// library's: products on its own memory and stream, checked against FP64.
#include "tests/bench/gemmd_kernels.h"
#include "tests/device/gpu_workbench.h"

#include "gtest/gtest.h"
#include <cuda_runtime_api.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

GemmdMatrix MatrixOf(const MatrixView& view) {
  return {view.data, view.batches, view.rows, view.columns, view.batch_stride, view.row_stride};
}

GemmdScales ScalesOf(const ScaleView& view) {
  return {view.data, view.batch_stride, view.row_stride, view.block_stride};
}

class KernelsInterfaceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    kernels_ = gemmd_kernels_open(nullptr);
    if (kernels_ == nullptr) GTEST_SKIP() << "no Hopper GPU";
    Must(cudaStreamCreate(&stream_), "making a stream");
  }
  void TearDown() override {
    if (kernels_ == nullptr) return;
    Must(cudaStreamDestroy(stream_), "ending a stream");
    gemmd_kernels_close(kernels_);
  }

  // Runs the product through the interface and returns the configuration.
  std::string RunAndCheck(const Product& product) {
    static TestKernels* const test_kernels = new TestKernels;
    Workbench bench(product, *test_kernels);
    const GemmCall& call = bench.call();
    GemmdProduct p = {};
    p.scaling = static_cast<int>(call.scaling);
    p.output = static_cast<int>(call.output);
    p.a = MatrixOf(call.a);
    p.b = MatrixOf(call.b);
    p.d = MatrixOf(call.d);
    p.sfa = ScalesOf(call.sfa);
    p.sfb = ScalesOf(call.sfb);
    std::vector<GemmdSegment> segments;
    for (const Segment& s : call.segments) segments.push_back({s.batch, s.group, s.row_begin, s.row_end});
    if (call.clip_rows) {
      p.segments = segments.data();
      p.segment_count = static_cast<int>(segments.size());
    }
    Must(cudaDeviceSynchronize(), "filling operands");
    char config[64] = "";
    EXPECT_EQ(gemmd_kernels_run(kernels_, &p, stream_, config, sizeof(config)), 0) << product.Name();
    Must(cudaStreamSynchronize(stream_), "running");
    const CheckOutcome outcome = bench.Check(1);
    EXPECT_TRUE(outcome.ok) << product.Name() << ": frobenius " << outcome.frobenius << ", not finite "
                            << outcome.not_finite << ", bytes outside " << outcome.outside;
    std::printf("%s: %s\n", product.Name().c_str(), config);
    return config;
  }

  void* kernels_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

TEST_F(KernelsInterfaceTest, ADenseProductIsRightAndNamesItsConfiguration) {
  const Product product{"dense", KernelScaling::kRowBlock, KernelOutput::kBf16, 300, 2112, 1040, {}};
  const std::string config = RunAndCheck(product);
  EXPECT_NE(config.find('x'), std::string::npos) << config;
  EXPECT_EQ(RunAndCheck(product), config);
}

TEST_F(KernelsInterfaceTest, GroupedProductsWriteTheirRowsAlone) {
  const std::vector<int64_t> groups = {70, 0, 129, 1};
  EXPECT_FALSE(RunAndCheck({"contiguous", KernelScaling::kRowBlock, KernelOutput::kBf16, 0, 576, 528, groups}).empty());
  EXPECT_FALSE(RunAndCheck({"masked", KernelScaling::kRowBlock, KernelOutput::kBf16, 160, 576, 528, groups}).empty());
}

TEST_F(KernelsInterfaceTest, WhatTheKernelsDoNotTakeIsAnErrorNotACrash) {
  GemmdProduct p = {};
  p.a = {reinterpret_cast<void*>(8), 1, 64, 128, 0, 128};  // TMA takes addresses on 16 bytes.
  p.b = {reinterpret_cast<void*>(256), 1, 64, 128, 0, 128};
  p.d = {reinterpret_cast<void*>(256), 1, 64, 64, 0, 64};
  EXPECT_NE(gemmd_kernels_run(kernels_, &p, stream_, nullptr, 0), 0);
}

}  // namespace
}  // namespace gemmd
