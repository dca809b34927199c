// SPDX-License-Identifier: Apache-2.0
// The C interface of tests/bench/gemmd_kernels.h, as a program would use it that times our kernels beside another
// library's: products on its own memory and stream, checked against FP64.
#include "tests/bench/gemmd_kernels.h"
#include "tests/device/gpu_workbench.h"
#include "tests/device/quantize_check.h"

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
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

  static TestKernels& Kernels() {
    static TestKernels* const kernels = new TestKernels;
    return *kernels;
  }

  static GemmdProduct ProductOf(const GemmCall& call) {
    GemmdProduct p = {};
    p.scaling = static_cast<int>(call.scaling);
    p.output = static_cast<int>(call.output);
    p.a = MatrixOf(call.a);
    p.b = MatrixOf(call.b);
    p.d = MatrixOf(call.d);
    p.sfa = ScalesOf(call.sfa);
    p.sfb = ScalesOf(call.sfb);
    return p;
  }

  // `run` starts the product on the stream and says how that went.
  using Start = std::function<int(const GemmCall& call, char* config, int config_size)>;
  std::string RunAndCheck(const Product& product, const Start& start) {
    Workbench bench(product, Kernels());
    Must(cudaDeviceSynchronize(), "filling operands");
    char config[64] = "";
    EXPECT_EQ(start(bench.call(), config, sizeof(config)), 0) << product.Name();
    Must(cudaStreamSynchronize(stream_), "running");
    const CheckOutcome outcome = bench.Check(1);
    EXPECT_TRUE(outcome.ok) << product.Name() << ": frobenius " << outcome.frobenius << ", not finite "
                            << outcome.not_finite << ", bytes outside " << outcome.outside;
    std::printf("%s: %s\n", product.Name().c_str(), config);
    return config;
  }

  // Runs the product through the interface and returns the configuration.
  std::string RunAndCheck(const Product& product) {
    return RunAndCheck(product, [&](const GemmCall& call, char* config, int config_size) {
      GemmdProduct p = ProductOf(call);
      std::vector<GemmdSegment> segments;
      for (const Segment& s : call.segments) segments.push_back({s.batch, s.group, s.row_begin, s.row_end});
      if (call.clip_rows) {
        p.segments = segments.data();
        p.segment_count = static_cast<int>(segments.size());
      }
      return gemmd_kernels_run(kernels_, &p, stream_, config, config_size);
    });
  }

  // With masked_m in GPU memory: `masked_m` gives the product's rows once each is brought into [0, M_max].
  std::string RunAndCheckMasked(const Product& product, const std::vector<int32_t>& masked_m) {
    const size_t bytes = masked_m.size() * sizeof(int32_t);
    const DeviceBuffer values(static_cast<int64_t>(bytes));
    const DeviceBuffer rows(static_cast<int64_t>(bytes));
    Must(cudaMemcpy(values.data(), masked_m.data(), bytes, cudaMemcpyHostToDevice), "copying masked_m");
    return RunAndCheck(product, [&](const GemmCall& call, char* config, int config_size) {
      const GemmdProduct p = ProductOf(call);
      return gemmd_kernels_run_masked(kernels_, &p, reinterpret_cast<const int32_t*>(values.data()),
                                      reinterpret_cast<int32_t*>(rows.data()), stream_, config, config_size);
    });
  }

  std::string RunAndCheckKGrouped(const Product& product) {
    return RunAndCheck(product, [&](const GemmCall& call, char* config, int config_size) {
      GemmdKGroupedProduct p = {};
      p.scaling = static_cast<int>(call.scaling);
      p.output = static_cast<int>(call.output);
      p.m = product.m;
      p.n = product.n;
      p.groups = static_cast<int>(product.groups.size());
      p.ks = product.groups.data();
      p.a = call.segment_a[0].data;
      p.b = call.segment_b[0].data;
      p.d = MatrixOf(call.d);
      p.sfa = ScalesOf(call.sfa);
      p.sfb = ScalesOf(call.sfb);
      return gemmd_kernels_run_k_grouped(kernels_, &p, stream_, config, config_size);
    });
  }

  std::string Quantize(const QuantizeCase& quantize) {
    return CheckQuantize(quantize, Kernels(), [&](const QuantizeArgs& args) {
      const GemmdQuantization q = {static_cast<int>(quantize.input),
                                   static_cast<int>(quantize.shape),
                                   args.m,
                                   args.k,
                                   args.x,
                                   args.x_row_stride,
                                   args.q,
                                   args.q_row_stride,
                                   args.sf,
                                   args.sf_row_stride,
                                   args.sf_block_stride};
      if (gemmd_kernels_quantize(kernels_, &q, stream_) != 0) return absl::InternalError("not started");
      Must(cudaStreamSynchronize(stream_), "quantizing");
      return absl::OkStatus();
    });
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

TEST_F(KernelsInterfaceTest, RowsThatOnlyTheGpuKnowsAreBroughtIntoRange) {
  const Product product{"masked", KernelScaling::kRowBlock, KernelOutput::kBf16, 160, 576, 528, {70, 0, 160, 1}};
  EXPECT_FALSE(RunAndCheckMasked(product, {70, 0, 160, 1}).empty());
  EXPECT_FALSE(RunAndCheckMasked(product, {70, -5, 100000, 1}).empty());
}

TEST_F(KernelsInterfaceTest, KGroupedProductsAreRightAndAdd) {
  const std::vector<int64_t> fp8 = {144, 0, 400, 1040};
  const std::vector<int64_t> bf16 = {8, 0, 200, 136};
  for (const KernelOutput output : {KernelOutput::kF32, KernelOutput::kF32Add}) {
    EXPECT_FALSE(RunAndCheckKGrouped({"kgrouped", KernelScaling::kRowRow, output, 200, 328, 0, fp8, true}).empty());
    EXPECT_FALSE(RunAndCheckKGrouped({"kgrouped", KernelScaling::kBf16, output, 77, 331, 0, bf16}).empty());
  }
}

TEST_F(KernelsInterfaceTest, WithoutDepthDIsZeroOrAsBeforeAndNothingIsRead) {
  constexpr int64_t kM = 70, kN = 136;
  constexpr size_t kBytes = kM * kN * sizeof(float);
  const DeviceBuffer d(kBytes);
  for (const int output : {1, 2}) {
    const std::vector<float> before(kM * kN, 3.0f);
    const auto expect_written = [&](int rc) {
      EXPECT_EQ(rc, 0);
      Must(cudaStreamSynchronize(stream_), "running");
      std::vector<float> after(kM * kN);
      Must(cudaMemcpy(after.data(), d.data(), kBytes, cudaMemcpyDeviceToHost), "copying D");
      EXPECT_EQ(after, std::vector<float>(kM * kN, output == 2 ? 3.0f : 0.0f));
    };
    const auto fill = [&] { Must(cudaMemcpy(d.data(), before.data(), kBytes, cudaMemcpyHostToDevice), "filling D"); };
    GemmdProduct p = {};
    p.output = output;
    p.a = {nullptr, 1, kM, 0, 0, 0};
    p.b = {nullptr, 1, kN, 0, 0, 0};
    p.d = {d.data(), 1, kM, kN, kM * kN, kN};
    fill();
    expect_written(gemmd_kernels_run(kernels_, &p, stream_, nullptr, 0));
    const int64_t none = 0;
    GemmdKGroupedProduct g = {};
    g.scaling = g.groups = 1;
    g.output = output;
    g.m = kM;
    g.n = kN;
    g.ks = &none;
    g.d = p.d;
    fill();
    expect_written(gemmd_kernels_run_k_grouped(kernels_, &g, stream_, nullptr, 0));
  }
}

TEST_F(KernelsInterfaceTest, QuantizesToTheBitsOfTheHost) {
  for (const QuantizeInput input : {QuantizeInput::kBf16, QuantizeInput::kF32}) {
    EXPECT_EQ(Quantize({input, QuantizeShape::kRow, 131, 333}), "");
    EXPECT_EQ(Quantize({input, QuantizeShape::kRow, 131, 333, 16, true}), "");
    EXPECT_EQ(Quantize({input, QuantizeShape::kBlock, 131, 333}), "");
  }
}

TEST_F(KernelsInterfaceTest, WhatTheKernelsDoNotTakeIsAnErrorNotACrash) {
  GemmdProduct p = {};
  p.a = {reinterpret_cast<void*>(8), 1, 64, 128, 0, 128};  // TMA takes addresses on 16 bytes.
  p.b = {reinterpret_cast<void*>(256), 1, 64, 128, 0, 128};
  p.d = {reinterpret_cast<void*>(256), 1, 64, 64, 0, 64};
  EXPECT_NE(gemmd_kernels_run(kernels_, &p, stream_, nullptr, 0), 0);
  p.a.data = p.b.data;
  p.sfa = p.sfb = {reinterpret_cast<const float*>(256), 0, 1, 1};
  p.scaling = 3;  // No such kernel.
  EXPECT_NE(gemmd_kernels_run(kernels_, &p, stream_, nullptr, 0), 0);
  p.scaling = 0;
  p.output = -1;
  EXPECT_NE(gemmd_kernels_run(kernels_, &p, stream_, nullptr, 0), 0);
  p.output = 0;
  const GemmdSegment segment = {0, 0, 0, 64};
  p.segments = &segment;  // Masked products have none.
  EXPECT_NE(gemmd_kernels_run_masked(kernels_, &p, nullptr, nullptr, stream_, nullptr, 0), 0);
  const int64_t odd = 24;
  GemmdKGroupedProduct g = {};
  g.scaling = g.output = g.groups = 1;
  g.ks = &odd;  // 24 bytes are no multiple of 16.
  g.m = g.n = 64;
  g.d = {reinterpret_cast<void*>(256), 1, 64, 64, 64 * 64, 64};
  EXPECT_NE(gemmd_kernels_run_k_grouped(kernels_, &g, stream_, nullptr, 0), 0);
  GemmdQuantization q = {};
  q.m = q.k = 8;
  q.x_row_stride = q.q_row_stride = 8;  // 16 bytes of x, but 8 of q.
  EXPECT_NE(gemmd_kernels_quantize(kernels_, &q, stream_), 0);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace gemmd
