// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/gemmd_kernels.h"

#include "gpu/cuda/gemm_launcher.h"

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

namespace {

using gemmd::GemmCall;
using gemmd::GemmLauncher;

gemmd::MatrixView ViewOf(const GemmdMatrix& m) {
  return {m.data, m.batches, m.rows, m.columns, m.batch_stride, m.row_stride};
}

GemmCall CallOf(const GemmdProduct& product) {
  GemmCall call;
  call.scaling = static_cast<gemmd::KernelScaling>(product.scaling);
  call.output = static_cast<gemmd::KernelOutput>(product.output);
  call.a = ViewOf(product.a);
  call.b = ViewOf(product.b);
  call.d = ViewOf(product.d);
  call.sfa = {product.sfa.data, product.sfa.batch_stride, product.sfa.row_stride, product.sfa.block_stride};
  call.sfb = {product.sfb.data, product.sfb.batch_stride, product.sfb.row_stride, product.sfb.block_stride};
  const int k = static_cast<int>(product.a.columns);
  if (product.segments == nullptr) {
    if (product.a.rows > 0) call.segments.push_back({0, 0, 0, static_cast<int>(product.a.rows), k, 0});
    return call;
  }
  call.clip_rows = true;
  for (int i = 0; i < product.segment_count; ++i) {
    const GemmdSegment& s = product.segments[i];
    if (s.row_begin < s.row_end) call.segments.push_back({s.batch, s.group, s.row_begin, s.row_end, k, 0});
  }
  return call;
}

}  // namespace

extern "C" void* gemmd_kernels_open(const char* cache_directory) {
  GemmLauncher::Options options;
  if (cache_directory != nullptr) options.cache_directory = cache_directory;
  auto launcher = GemmLauncher::Create(options);
  if (launcher.ok()) return launcher->release();
  std::cerr << launcher.status() << "\n";
  return nullptr;
}

extern "C" void gemmd_kernels_close(void* kernels) { delete static_cast<GemmLauncher*>(kernels); }

extern "C" int gemmd_kernels_run(void* kernels, const GemmdProduct* product, void* stream, char* config,
                                 int config_size) {
  GemmLauncher& launcher = *static_cast<GemmLauncher*>(kernels);
  const GemmCall call = CallOf(*product);
  const gemmd::GemmConfig chosen = launcher.ConfigOf(call);
  const absl::Status status = launcher.Launch(call, static_cast<cudaStream_t>(stream), chosen);
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  if (config != nullptr && config_size > 0) {
    std::snprintf(config, static_cast<size_t>(config_size), "%s", gemmd::Describe(chosen.traits).c_str());
  }
  return 0;
}
