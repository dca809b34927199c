// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/gemmd_kernels.h"

#include "gpu/cuda/gemm_launcher.h"
#include "tests/bench/kernels_arguments.h"

#include "absl/status/status.h"

#include <algorithm>
#include <cstdint>
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

gemmd::ScaleView ViewOf(const GemmdScales& s) { return {s.data, s.batch_stride, s.row_stride, s.block_stride}; }

// Without depth nothing is loaded, but kernels have a tensor map of it: of memory that is there.
void StandIn(const gemmd::MatrixView& d, gemmd::MatrixView& empty) {
  constexpr int64_t kLegalStride = 16;
  empty.data = d.data;
  empty.batch_stride = empty.row_stride = kLegalStride;
}

GemmCall CallOf(const GemmdProduct& product) {
  GemmCall call;
  call.scaling = static_cast<gemmd::KernelScaling>(product.scaling);
  call.output = static_cast<gemmd::KernelOutput>(product.output);
  call.a = ViewOf(product.a);
  call.b = ViewOf(product.b);
  call.d = ViewOf(product.d);
  call.sfa = ViewOf(product.sfa);
  call.sfb = ViewOf(product.sfb);
  const int k = static_cast<int>(product.a.columns);
  if (k == 0) {
    StandIn(call.d, call.a);
    StandIn(call.d, call.b);
  }
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

// Segments for all rows that there may be.
GemmCall MaskedCallOf(const GemmdProduct& product, const int32_t* rows) {
  GemmCall call = CallOf(product);
  call.segments.clear();
  call.clip_rows = true;
  call.group_rows = rows;
  const int most = static_cast<int>(product.a.rows);
  for (int g = 0; g < static_cast<int>(product.a.batches) && most > 0; ++g)
    call.segments.push_back({g, g, 0, most, static_cast<int>(product.a.columns), 0});
  return call;
}

GemmCall CallOf(const GemmdKGroupedProduct& product) {
  GemmCall call;
  call.scaling = static_cast<gemmd::KernelScaling>(product.scaling);
  call.output = static_cast<gemmd::KernelOutput>(product.output);
  call.d = ViewOf(product.d);
  call.sfa = ViewOf(product.sfa);
  call.sfb = ViewOf(product.sfb);
  call.sfa.batch_stride = call.sfb.batch_stride = 0;  // Batches are D's alone.
  if (product.m == 0) return call;
  const bool has_depth = std::any_of(product.ks, product.ks + product.groups, [](int64_t k) { return k > 0; });
  const int64_t element = product.scaling == 2 ? 2 : 1;
  char* a = static_cast<char*>(has_depth ? const_cast<void*>(product.a) : call.d.data);
  char* b = static_cast<char*>(has_depth ? const_cast<void*>(product.b) : call.d.data);
  int64_t block = 0;
  for (int g = 0; g < product.groups; ++g) {
    const int64_t k = product.ks[g];
    call.segment_a.push_back({a, 1, product.m, k, 0, k});
    call.segment_b.push_back({b, 1, product.n, k, 0, k});
    call.segments.push_back({g, 0, 0, static_cast<int>(product.m), static_cast<int>(k), static_cast<int>(block)});
    a += product.m * k * element;
    b += product.n * k * element;
    block += (k + 127) / 128;
  }
  return call;
}

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << status << "\n";
  return 1;
}

absl::Status CheckKernels(const void* kernels) {
  if (kernels != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError("kernels: expected what gemmd_kernels_open gave, got null");
}

// Selects, launches, and copies the configuration's description to `config`.
absl::Status Run(GemmLauncher& launcher, const GemmCall& call, void* stream, char* config, int config_size) {
  const gemmd::GemmConfig chosen = launcher.ConfigOf(call);
  if (absl::Status status = launcher.Launch(call, static_cast<cudaStream_t>(stream), chosen); !status.ok())
    return status;
  if (config != nullptr && config_size > 0) {
    std::snprintf(config, static_cast<size_t>(config_size), "%s", gemmd::Describe(chosen.traits).c_str());
  }
  return absl::OkStatus();
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
  absl::Status status = gemmd::CheckProduct(product);
  status.Update(CheckKernels(kernels));
  if (status.ok()) status = Run(*static_cast<GemmLauncher*>(kernels), CallOf(*product), stream, config, config_size);
  return Report(status);
}

extern "C" int gemmd_kernels_run_masked(void* kernels, const GemmdProduct* product, const int32_t* masked_m,
                                        int32_t* rows, void* stream, char* config, int config_size) {
  absl::Status status = gemmd::CheckMaskedProduct(product, masked_m, rows);
  status.Update(CheckKernels(kernels));
  if (!status.ok()) return Report(status);
  GemmLauncher& launcher = *static_cast<GemmLauncher*>(kernels);
  status = launcher.LaunchClampRows(
      {masked_m, rows, static_cast<int>(product->a.batches), static_cast<int>(product->a.rows)},
      static_cast<cudaStream_t>(stream));
  if (status.ok()) status = Run(launcher, MaskedCallOf(*product, rows), stream, config, config_size);
  return Report(status);
}

extern "C" int gemmd_kernels_run_k_grouped(void* kernels, const GemmdKGroupedProduct* product, void* stream,
                                           char* config, int config_size) {
  absl::Status status = gemmd::CheckKGroupedProduct(product);
  status.Update(CheckKernels(kernels));
  if (status.ok()) status = Run(*static_cast<GemmLauncher*>(kernels), CallOf(*product), stream, config, config_size);
  return Report(status);
}

extern "C" int gemmd_kernels_quantize(void* kernels, const GemmdQuantization* q, void* stream) {
  absl::Status status = gemmd::CheckQuantization(q);
  status.Update(CheckKernels(kernels));
  if (status.ok()) {
    status = static_cast<GemmLauncher*>(kernels)->LaunchQuantize(
        {q->x, q->x_row_stride, static_cast<unsigned char*>(q->q), q->q_row_stride, q->sf, q->sf_row_stride,
         q->sf_block_stride, q->m, q->k},
        static_cast<gemmd::QuantizeInput>(q->input), static_cast<gemmd::QuantizeShape>(q->shape),
        static_cast<cudaStream_t>(stream));
  }
  return Report(status);
}
