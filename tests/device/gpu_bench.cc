// SPDX-License-Identifier: Apache-2.0
// gpu_bench: how fast are the kernels beside cuBLASLt's (block-scaled FP8, or BF16)? Both are timed in turn in one run:
// L2 is evicted before each call, operands are random, times come from events around one launch, and the median counts.
// Prints one JSON object per line.
//
//   gpu_bench [--sweep] [--orders] [--rounds=N] [--dense=M,N,K;..] [--bf16] [--filter=TEXT] [--cache=DIR]
//             [--threads=N] [--row-major] [--plan=FILE]
//
// --bf16 takes the dense shapes alone, with operands in BF16 and no scales.
// --sweep times every configuration, not only the selected one. --orders times the selected one with other bands of
// tiles, and large tiles that share B in clusters, be it grouped. --plan writes what ran between which two evictions of
// L2, for a profiler that reads kernel times (profile_bench.py loads this program as a library and does so): a line for
// each call, `shape|what|FLOPs|bytes|shape as tables of other libraries name it`.
#include "gpu/cuda/gemm_launcher.h"
#include "tests/device/gpu_workbench.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cublasLt.h>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

// cuBLASLt, taken from the machine at run time: the benchmark starts without it.
class CublasLt {
 public:
  CublasLt() {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so"}) {
      if (library_ == nullptr) library_ = dlopen(name, RTLD_NOW);
    }
    if (library_ == nullptr) return;
    create_ = Find<decltype(create_)>("cublasLtCreate");
    desc_create_ = Find<decltype(desc_create_)>("cublasLtMatmulDescCreate");
    desc_set_ = Find<decltype(desc_set_)>("cublasLtMatmulDescSetAttribute");
    layout_create_ = Find<decltype(layout_create_)>("cublasLtMatrixLayoutCreate");
    preference_create_ = Find<decltype(preference_create_)>("cublasLtMatmulPreferenceCreate");
    preference_set_ = Find<decltype(preference_set_)>("cublasLtMatmulPreferenceSetAttribute");
    heuristic_ = Find<decltype(heuristic_)>("cublasLtMatmulAlgoGetHeuristic");
    matmul_ = Find<decltype(matmul_)>("cublasLtMatmul");
    if (create_(&handle_) != CUBLAS_STATUS_SUCCESS) handle_ = nullptr;
    Must(cudaMalloc(&workspace_, kWorkspace), "workspace");
  }

  // D[M,N] = A B^T with 1x128 scales of A and 128x128 of B, or of BF16 without; none if cuBLASLt does not take the
  // shape. cuBLASLt is column-major: our B is its transposed A. Scales are laid out as it wants them (the contents do
  // not matter for time).
  std::optional<std::function<void()>> Prepare(const GemmCall& call, int64_t m, int64_t n, int64_t k, bool row_row,
                                               float* scales_a, float* scales_b) {
    if (handle_ == nullptr || m % 4 != 0 || n % 4 != 0 || k % 16 != 0) return std::nullopt;
    cublasLtMatmulDesc_t desc;
    desc_create_(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    desc_set_(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
    const bool scaled = call.scaling != KernelScaling::kBf16;
    const int32_t mode_b =
        row_row ? CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    const int32_t mode_a = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    if (scaled) {
      desc_set_(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode_b, sizeof(mode_b));
      desc_set_(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode_a, sizeof(mode_a));
      desc_set_(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &scales_b, sizeof(scales_b));
      desc_set_(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &scales_a, sizeof(scales_a));
    }
    const cudaDataType_t operand = scaled ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    cublasLtMatrixLayout_t b, a, d;
    layout_create_(&b, operand, static_cast<uint64_t>(k), static_cast<uint64_t>(n), k);
    layout_create_(&a, operand, static_cast<uint64_t>(k), static_cast<uint64_t>(m), k);
    layout_create_(&d, call.output == KernelOutput::kBf16 ? CUDA_R_16BF : CUDA_R_32F, static_cast<uint64_t>(n),
                   static_cast<uint64_t>(m), call.d.row_stride);
    cublasLtMatmulPreference_t preference;
    preference_create_(&preference);
    const size_t workspace = kWorkspace;
    preference_set_(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    if (heuristic_(handle_, desc, b, a, d, d, preference, 1, &result, &found) != CUBLAS_STATUS_SUCCESS || found == 0)
      return std::nullopt;
    const float beta = call.output == KernelOutput::kF32Add ? 1.0f : 0.0f;
    return [this, desc, b, a, d, result, call, beta] {
      const float one = 1;
      const cublasStatus_t status = matmul_(handle_, desc, &one, call.b.data, b, call.a.data, a, &beta, call.d.data, d,
                                            call.d.data, d, &result.algo, workspace_, kWorkspace, nullptr);
      if (status != CUBLAS_STATUS_SUCCESS) std::printf("cuBLASLt status %d\n", static_cast<int>(status));
    };
  }

 private:
  static constexpr size_t kWorkspace = size_t{64} << 20;

  template <typename Function>
  Function Find(const char* name) {
    return reinterpret_cast<Function>(dlsym(library_, name));
  }

  void* library_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  decltype(&cublasLtCreate) create_ = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create_ = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set_ = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create_ = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create_ = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set_ = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic_ = nullptr;
  decltype(&cublasLtMatmul) matmul_ = nullptr;
};

class Timer {
 public:
  Timer() : flush_(kEvictionBytes) {
    Must(cudaEventCreate(&begin_), "event");
    Must(cudaEventCreate(&end_), "event");
  }

  // Each call's label goes to `plan`, in the order of calls.
  void set_plan(std::FILE* plan) { plan_ = plan; }

  // Median microseconds of each function, called in turn, with a cold L2.
  std::vector<double> Medians(const std::vector<std::function<void()>>& functions,
                              const std::vector<std::string>& labels, int rounds) {
    std::vector<std::vector<double>> times(functions.size());
    for (const auto& function : functions) function();
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < functions.size(); ++i) times[i].push_back(Once(functions[i], labels[i]));
    }
    std::vector<double> medians;
    for (auto& t : times) {
      std::nth_element(t.begin(), t.begin() + static_cast<long>(t.size() / 2), t.end());
      medians.push_back(t[t.size() / 2]);
    }
    return medians;
  }

 private:
  double Once(const std::function<void()>& function, const std::string& label) {
    if (plan_ != nullptr) std::fprintf(plan_, "%s\n", label.c_str());
    // Longer than the launch that follows takes on the host, so that the GPU finds it waiting.
    Must(cudaMemsetAsync(flush_.data(), ++value_ & 0xff, static_cast<size_t>(flush_.byte_size()), nullptr),
         "evicting L2");
    Must(cudaEventRecord(begin_, nullptr), "event");
    function();
    Must(cudaEventRecord(end_, nullptr), "event");
    // What follows, checks and fills, must not count as this call's.
    Must(cudaMemsetAsync(flush_.data(), 0, kEndBytes, nullptr), "ending a call");
    Must(cudaEventSynchronize(end_), "running");
    float ms = 0;
    Must(cudaEventElapsedTime(&ms, begin_, end_), "timing");
    return ms * 1000.0;
  }

  static constexpr int64_t kEvictionBytes = int64_t{4} << 30;  // Much more than L2; the pause lets the GPU cool down.
  static constexpr size_t kEndBytes = 264;                     // A number that nobody else uses (profile_bench.py).

  DeviceBuffer flush_;
  int value_ = 0;
  std::FILE* plan_ = nullptr;
  cudaEvent_t begin_;
  cudaEvent_t end_;
};

// A product, and its name in tables of other libraries' times: "contig,G8 m4096 N4096 K7168" gives the mean rows of a
// group, of which each table draws its own.
struct BenchShape {
  Product product;
  std::string target;
};

std::vector<BenchShape> TargetShapes() {
  std::vector<BenchShape> shapes;
  const auto dense = [&](int64_t n, int64_t k, std::vector<int64_t> ms) {
    for (const int64_t m : ms) {
      shapes.push_back({{"dense", KernelScaling::kRowBlock, KernelOutput::kBf16, m, n, k, {}},
                        absl::StrCat("dense,M", m, " N", n, " K", k)});
    }
  };
  dense(576, 7168, {64, 4096});
  dense(2112, 7168, {1, 8, 16, 32, 64, 128, 512, 1024, 4096});
  dense(4096, 7168, {1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096});
  dense(7168, 2048, {1, 16, 64, 128, 256, 512, 2048, 4096});
  dense(7168, 16384, {1, 8, 64, 128, 4096});
  dense(24576, 1536, {1, 8, 64, 128, 4096});
  dense(32768, 512, {64, 128, 4096});
  std::mt19937 random(3);
  const auto draw = [&](int groups, int64_t mean, int64_t multiple) {
    std::vector<int64_t> rows;
    for (int g = 0; g < groups; ++g) {
      const double u = 0.7 + 0.6 * static_cast<double>(random() % 10000) / 10000.0;
      rows.push_back(std::max<int64_t>(static_cast<int64_t>(static_cast<double>(mean) * u) / multiple, 1) * multiple);
    }
    return rows;
  };
  struct Grouped {
    int groups;
    int64_t m, n, k;
  };
  for (const Grouped g : {Grouped{64, 32, 4096, 7168},
                          {32, 256, 4096, 7168},
                          {8, 4096, 4096, 7168},
                          {8, 4096, 6144, 7168},
                          {8, 4096, 7168, 3072},
                          {4, 8192, 4096, 7168},
                          {4, 8192, 7168, 2048}}) {
    shapes.push_back(
        {{"contiguous", KernelScaling::kRowBlock, KernelOutput::kBf16, g.m, g.n, g.k, draw(g.groups, g.m, 1)},
         absl::StrCat("contig,G", g.groups, " m", g.m, " N", g.n, " K", g.k)});
  }
  for (const Grouped g : {Grouped{32, 4, 7168, 2048},
                          {6, 20, 6144, 7168},
                          {32, 20, 6144, 7168},
                          {6, 20, 7168, 3072},
                          {32, 20, 7168, 3072},
                          {8, 64, 4096, 7168},
                          {32, 192, 6144, 7168},
                          {32, 192, 7168, 3072},
                          {6, 1024, 4096, 4096},
                          {6, 1024, 6144, 7168}}) {
    shapes.push_back({{"masked", KernelScaling::kRowBlock, KernelOutput::kBf16, std::max<int64_t>(g.m * 2, 64), g.n,
                       g.k, draw(g.groups, g.m, 1)},
                      absl::StrCat("masked,G", g.groups, " m", g.m, " N", g.n, " K", g.k)});
  }
  for (const Grouped g : {Grouped{8, 4096, 7168, 4096}, {4, 4096, 7168, 8192}, {16, 7168, 2048, 2048}}) {
    shapes.push_back(
        {{"kgrouped", KernelScaling::kRowRow, KernelOutput::kF32Add, g.m, g.n, g.k, draw(g.groups, g.k, 128)},
         absl::StrCat("kgrouped,G", g.groups, " M", g.m, " N", g.n, " k", g.k)});
  }
  return shapes;
}

// The fewest bytes that a product can move: each operand read once, D written once (read too where it is added to).
double LeastBytes(const GemmCall& call) {
  const double element = call.scaling == KernelScaling::kBf16 ? 2 : 1;
  const double out = call.output == KernelOutput::kBf16 ? 2 : call.output == KernelOutput::kF32 ? 4 : 8;
  const double n = static_cast<double>(call.n());
  double bytes = 0;
  for (const Segment& s : call.segments) {
    const double m = s.row_end - s.row_begin;
    const double k = s.k;
    bytes += m * k * element + n * k * element + m * n * out;
    if (call.scaling == KernelScaling::kBf16) continue;
    bytes += 4 * k / 128 * (m + (call.scaling == KernelScaling::kRowRow ? n : n / 128));
  }
  return bytes;
}

std::vector<BenchShape> ParseDense(const std::string& text) {
  std::vector<BenchShape> shapes;
  for (const auto shape : absl::StrSplit(text, ';', absl::SkipEmpty())) {
    const std::vector<std::string> numbers = absl::StrSplit(shape, ',');
    shapes.push_back({{"dense",
                       KernelScaling::kRowBlock,
                       KernelOutput::kBf16,
                       std::atoll(numbers[0].c_str()),
                       std::atoll(numbers[1].c_str()),
                       std::atoll(numbers[2].c_str()),
                       {}},
                      {}});
  }
  return shapes;
}

struct BenchOptions {
  bool sweep = false;
  bool orders = false;
  bool bf16 = false;
  int rounds = 15;
  int threads = 2;
  std::string plan;
  std::string filter;
  bool row_major = false;  // SFA row-major; otherwise M-major, as libraries want it.
  std::vector<BenchShape> shapes = TargetShapes();
};

void Bench(GemmLauncher& launcher, TestKernels& kernels, CublasLt& cublas, Timer& timer, const BenchShape& target,
           const BenchOptions& options) {
  const Product& product = target.product;
  Workbench bench(product, kernels);
  const GemmCall& call = bench.call();
  const Grouping grouping = !call.segment_a.empty() ? Grouping::kDepth
                            : call.clip_rows        ? Grouping::kRows
                                                    : Grouping::kDense;
  std::vector<GemmConfig> configs = {launcher.ConfigOf(call)};
  if (options.sweep) {
    GemmShape shape{call.scaling, call.output, grouping, call.n(), product.k, {}};
    for (const Segment& s : call.segments)
      shape.rows.push_back(s.row_end - s.row_begin), shape.k = std::max<int64_t>(shape.k, s.k);
    const double best = PredictNanos(shape, configs[0].traits, launcher.sms());
    for (const TileChoice& tile : Candidates(call.scaling, grouping)) {
      const GemmTraits traits = TraitsOf(tile, call.scaling, call.output, grouping);
      // What the model thinks hopeless is not worth the time.
      if (!traits.legal() || PredictNanos(shape, traits, launcher.sms()) > 2.2 * best) continue;
      configs.push_back({traits, BandOf(traits, launcher.sms())});
    }
  }
  if (options.orders) {
    std::vector<GemmTraits> large = {configs[0].traits};
    for (const TileChoice& tile : {TileChoice{256, 128, false, Multicast::kB}, {128, 192, false, Multicast::kB}}) {
      const GemmTraits traits = TraitsOf(tile, call.scaling, call.output, grouping);
      if (traits.legal()) large.push_back(traits);
    }
    for (const GemmTraits& traits : large) {
      for (const int band : {BandOf(traits, launcher.sms()), 2, 4, 8, 16, 32}) configs.push_back({traits, band});
    }
  }
  std::vector<std::function<void()>> functions;
  for (const GemmConfig& config : configs) {
    functions.push_back([&launcher, &call, config] {
      if (const absl::Status status = launcher.Launch(call, nullptr, config); !status.ok())
        std::printf("%s\n", status.ToString().c_str());
    });
  }
  DeviceBuffer scales_a(call.segments.empty() ? 4 : (product.m + 4) * (product.k / 128 + 4) * 4);
  DeviceBuffer scales_b((product.n / 128 + 4) * (product.k / 128 + 8) * 4);
  Must(cudaMemset(scales_a.data(), 0x3c, static_cast<size_t>(scales_a.byte_size())), "scales");
  Must(cudaMemset(scales_b.data(), 0x3c, static_cast<size_t>(scales_b.byte_size())), "scales");
  bool has_peer = false;
  if (product.kind == "dense") {
    // cuBLASLt takes multiples of 4 rows.
    const int64_t m = (product.m + 3) / 4 * 4;
    if (m == product.m) {
      if (auto run = cublas.Prepare(call, m, product.n, product.k, false, reinterpret_cast<float*>(scales_a.data()),
                                    reinterpret_cast<float*>(scales_b.data()))) {
        functions.push_back(*run);
        has_peer = true;
      }
    }
  }
  // The same product where only the GPU knows how many rows each group has.
  const bool masked = product.kind == "masked";
  std::vector<int> masked_m(product.groups.begin(), product.groups.end());
  const DeviceBuffer values(static_cast<int64_t>(masked_m.size() * sizeof(int)));
  const DeviceBuffer rows_in_use(values.byte_size());
  Must(cudaMemcpy(values.data(), masked_m.data(), masked_m.size() * sizeof(int), cudaMemcpyHostToDevice), "rows");
  GemmCall unknown = call;
  unknown.group_rows = reinterpret_cast<int*>(rows_in_use.data());
  for (Segment& s : unknown.segments) s.row_end = static_cast<int>(product.m);
  if (masked) {
    functions.push_back([&] {
      const int most = static_cast<int>(product.m);
      absl::Status status = launcher.LaunchClampRows(
          {values.data(), reinterpret_cast<int*>(rows_in_use.data()), static_cast<int>(masked_m.size()), most},
          nullptr);
      status.Update(launcher.Launch(unknown, nullptr));
      if (!status.ok()) std::printf("%s\n", status.ToString().c_str());
    });
  }
  const auto label = [&](const std::string& what) {
    return absl::StrFormat("%s|%s|%.17g|%.17g|%s", product.Name(), what, bench.flops(), LeastBytes(call),
                           target.target);
  };
  std::vector<std::string> labels;
  for (size_t i = 0; i < configs.size(); ++i) {
    labels.push_back(label(absl::StrCat(i == 0 ? "selected " : "", Describe(configs[i].traits),
                                        options.orders && i > 0 ? absl::StrCat(" band ", configs[i].band) : "")));
  }
  if (has_peer) labels.push_back(label("cublaslt"));
  if (masked) labels.push_back(label(absl::StrCat("rows in GPU memory ", Describe(launcher.ConfigOf(unknown).traits))));
  const std::vector<double> times = timer.Medians(functions, labels, options.rounds);
  bench.ResetOutput();
  functions[0]();
  Must(cudaDeviceSynchronize(), "running");
  const int64_t rows = product.kind == "dense" || product.kind == "kgrouped"
                           ? product.m
                           : 64 * static_cast<int64_t>(product.groups.size());
  const CheckOutcome outcome = bench.Check(static_cast<int>(std::max<int64_t>(rows / 64, 1)));
  const double us = times[0];
  std::printf("{\"shape\":\"%s\",\"us\":%.2f,\"config\":\"%s\",\"tflops\":%.1f,\"ok\":%s", product.Name().c_str(), us,
              Describe(configs[0].traits).c_str(), bench.flops() / us / 1e6, outcome.ok ? "true" : "false");
  if (has_peer) std::printf(",\"cublaslt_us\":%.2f,\"ratio\":%.3f", times.back(), us / times.back());
  if (masked) {
    std::printf(",\"rows_in_gpu_memory_us\":%.2f,\"config_for_m_max\":\"%s\"", times.back(),
                Describe(launcher.ConfigOf(unknown).traits).c_str());
  }
  if (options.sweep || options.orders) {
    std::vector<std::pair<double, std::string>> order;
    for (size_t i = 1; i < configs.size(); ++i) {
      order.push_back({times[i], absl::StrCat(Describe(configs[i].traits), " band ", configs[i].band)});
    }
    std::sort(order.begin(), order.end());
    std::printf(",\"sweep\":{");
    for (size_t i = 0; i < order.size(); ++i)
      std::printf("%s\"%s\":%.2f", i ? "," : "", order[i].second.c_str(), order[i].first);
    std::printf("}");
  }
  std::printf("}\n");
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  BenchOptions options;
  GemmLauncher::Options launcher_options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--sweep") options.sweep = true;
    if (argument == "--orders") options.orders = true;
    if (argument == "--bf16") options.bf16 = true;
    if (argument == "--row-major") options.row_major = true;
    if (absl::StartsWith(argument, "--rounds=")) options.rounds = std::atoi(argument.c_str() + 9);
    if (absl::StartsWith(argument, "--threads=")) options.threads = std::atoi(argument.c_str() + 10);
    if (absl::StartsWith(argument, "--cache=")) launcher_options.cache_directory = argument.substr(8);
    if (absl::StartsWith(argument, "--plan=")) options.plan = argument.substr(7);
    if (absl::StartsWith(argument, "--filter=")) options.filter = argument.substr(9);
    if (absl::StartsWith(argument, "--dense=")) options.shapes = ParseDense(argument.substr(8));
  }
  if (options.bf16) {
    std::erase_if(options.shapes, [](const BenchShape& shape) { return shape.product.kind != "dense"; });
    for (BenchShape& shape : options.shapes) {
      shape.product.scaling = KernelScaling::kBf16;
      shape.target.clear();  // The tables are of FP8.
    }
  }
  auto launcher = GemmLauncher::Create(launcher_options);
  if (!launcher.ok()) {
    std::printf("%s\n", launcher.status().ToString().c_str());
    return 77;
  }
  std::vector<GemmTraits> wanted;
  for (const GemmTraits& t : SelectableTraits()) {
    const KernelScaling scaling = options.bf16 ? KernelScaling::kBf16 : KernelScaling::kRowBlock;
    if (t.scaling == scaling && t.output == KernelOutput::kBf16) wanted.push_back(t);
    if (options.bf16) continue;
    if (t.scaling == KernelScaling::kRowRow && t.output == KernelOutput::kF32Add && t.map_pairs > 1)
      wanted.push_back(t);
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < options.threads; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = static_cast<size_t>(t); i < wanted.size(); i += static_cast<size_t>(options.threads)) {
        if (const auto made = (*launcher)->Prepare(wanted[i]); !made.ok())
          std::printf("%s\n", made.status().ToString().c_str());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  TestKernels kernels;
  CublasLt cublas;
  Timer timer;
  std::FILE* plan = options.plan.empty() ? nullptr : std::fopen(options.plan.c_str(), "w");
  timer.set_plan(plan);
  const std::vector<double> empty =
      timer.Medians({[&] { kernels.Launch("Empty", 1, nullptr); }}, {"empty||||"}, options.rounds);
  std::printf("{\"empty_kernel_us\":%.2f}\n", empty[0]);
  for (BenchShape& shape : options.shapes) {
    Product& product = shape.product;
    product.sfa_m_major = product.sfb_m_major = !options.row_major;
    if (product.scaling == KernelScaling::kRowBlock) product.sfb_m_major = false;
    if (!options.filter.empty() && !absl::StrContains(product.Name(), options.filter)) continue;
    Bench(**launcher, kernels, cublas, timer, shape, options);
  }
  if (plan != nullptr) std::fclose(plan);
  return 0;
}

}  // namespace
}  // namespace gemmd

extern "C" int gpu_bench_main(int argc, char** argv) { return gemmd::Main(argc, argv); }

int main(int argc, char** argv) { return gpu_bench_main(argc, argv); }
