// SPDX-License-Identifier: Apache-2.0
// gpu_check: is every kernel right on this GPU? Runs a generated grid of products with each configuration that may run
// them, compares with FP64, looks for bytes written outside D, and compares bits between configurations and runs.
// Quantizes too: every shape and input, bits compared with the host's. Prints a line for each failure and a summary for
// each kind; exits 0 only if all is right. BF16 operands that are quantized on the way to an FP8 product do not go
// through the launcher as one: they are in the tests of the device.
//
//   gpu_check [--all-configs] [--bf16] [--effort=N] [--cache=DIR] [--threads=N] [--plain-scales]
//
// --bf16 takes products of BF16 operands alone, about half of all.
// --effort=0 is a short grid of one kernel of each structure, for compute-sanitizer; with --plain-scales scale factors
// travel by ordinary loads and stores, which racecheck follows:
//
//   compute-sanitizer --tool racecheck --kernel-regex kns=Gemm gpu_check --effort=0 --plain-scales --cache=DIR
#include "gpu/cuda/gemm_launcher.h"
#include "tests/device/gpu_workbench.h"
#include "tests/device/quantize_check.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

// A kernel that hangs must name itself before the program is killed. Under compute-sanitizer kernels take their time.
constexpr auto kPatience = std::chrono::seconds(30);

void WaitOrDie(const std::string& what) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    const cudaError_t state = cudaStreamQuery(nullptr);
    if (state == cudaSuccess) return;
    if (state != cudaErrorNotReady) {
      std::printf("FAULT %s: %s\n", what.c_str(), cudaGetErrorString(state));
      std::fflush(stdout);
      std::_Exit(4);
    }
    if (std::chrono::steady_clock::now() > deadline) {
      std::printf("HANG %s\n", what.c_str());
      std::fflush(stdout);
      std::_Exit(5);
    }
  }
}

struct Tally {
  int runs = 0;
  int failures = 0;
  double frobenius = 0;
  double largest = 0;
};

class Checker {
 public:
  Checker(GemmLauncher& launcher, bool every_config, bool only_bf16)
      : launcher_(launcher), every_config_(every_config), only_bf16_(only_bf16) {}

  // While planning, Run only notes the kernels that it will need.
  void set_planning(bool planning) { planning_ = planning; }
  const std::vector<GemmTraits>& planned() const { return planned_; }

  // With those of `tiles` that may run the product, if there are any in it; else with what is selected and the
  // fallback.
  void Run(const Product& product, const std::vector<TileChoice>& tiles = {}) {
    if (only_bf16_ && product.scaling != KernelScaling::kBf16) return;
    Workbench bench(product, kernels_);
    WaitOrDie("preparing " + product.Name());
    const std::vector<GemmConfig> configs = ConfigsFor(product, bench.call(), tiles);
    if (planning_) {
      for (const GemmConfig& config : configs) {
        if (std::find(planned_.begin(), planned_.end(), config.traits) == planned_.end() && config.traits.block_m > 0)
          planned_.push_back(config.traits);
      }
      return;
    }
    bool first = true;
    for (const GemmConfig& config : configs) {
      const std::string name = absl::StrCat(product.Name(), " | ", Describe(config.traits));
      bench.ResetOutput();
      const absl::Status status = launcher_.Launch(bench.call(), nullptr, config);
      if (!status.ok()) {
        Fail(product, name, status.ToString());
        continue;
      }
      WaitOrDie(name);
      Note(product, name, bench.Check(1));
      // Any configuration and any run gives the same bits.
      if (first) bench.Keep();
      for (int again = 0; again < 2; ++again) {
        if (const uint64_t bytes = bench.DifferencesFromKept(); bytes > 0) {
          Fail(product, name,
               absl::StrCat("differs in ", bytes, " bytes from ",
                            again ? "its other run" : Describe(configs[0].traits)));
          break;
        }
        if (again == 1) break;
        bench.ResetOutput();
        if (!launcher_.Launch(bench.call(), nullptr, config).ok()) break;
        WaitOrDie(name);
      }
      if (product.kind == "masked") RunWithRowsOnGpu(product, bench, config, name);
      first = false;
    }
  }

  // Needs no kernel that has to be planned.
  void Run(const QuantizeCase& quantize) {
    if (planning_ || only_bf16_) return;
    const auto launch = [&](const QuantizeArgs& args) {
      const absl::Status status = launcher_.LaunchQuantize(args, quantize.input, quantize.shape, nullptr);
      WaitOrDie(quantize.Name());
      return status;
    };
    const std::string problem = CheckQuantize(quantize, kernels_, launch);
    Tally& tally = tallies_["quantize"];
    ++tally.runs;
    if (problem.empty()) return;
    ++tally.failures;
    std::printf("FAIL %s: %s\n", quantize.Name().c_str(), problem.c_str());
    std::fflush(stdout);
  }

  int Report() const {
    int failures = 0;
    for (const auto& [kind, tally] : tallies_) {
      std::printf("%-28s runs %5d failures %4d worst frobenius %.2e worst element %.2e\n", kind.c_str(), tally.runs,
                  tally.failures, tally.frobenius, tally.largest);
      failures += tally.failures;
    }
    return failures == 0 ? 0 : 1;
  }

 private:
  // The same where only the GPU knows the rows, as numbers that have to be clamped. Bits must be those that are kept.
  void RunWithRowsOnGpu(const Product& product, Workbench& bench, const GemmConfig& config, const std::string& name) {
    const int most = static_cast<int>(product.m);
    const int groups = static_cast<int>(product.groups.size());
    std::vector<int> values;
    GemmCall call = bench.call();
    call.segments.clear();
    for (int g = 0; g < groups; ++g) {
      const int rows = static_cast<int>(product.groups[static_cast<size_t>(g)]);
      values.push_back(rows == 0 ? -g : rows == most ? most + g : rows);
      call.segments.push_back({g, g, 0, most, static_cast<int>(product.k), 0});
    }
    const size_t bytes = values.size() * sizeof(int);
    const DeviceBuffer masked_m(static_cast<int64_t>(bytes));
    const DeviceBuffer rows(static_cast<int64_t>(bytes));
    Must(cudaMemcpy(masked_m.data(), values.data(), bytes, cudaMemcpyHostToDevice), "rows");
    call.group_rows = reinterpret_cast<int*>(rows.data());
    bench.ResetOutput();
    absl::Status status =
        launcher_.LaunchClampRows({masked_m.data(), reinterpret_cast<int*>(rows.data()), groups, most}, nullptr);
    if (status.ok()) status = launcher_.Launch(call, nullptr, config);
    WaitOrDie(name + " rows on the GPU");
    const uint64_t different = bench.DifferencesFromKept();
    if (!status.ok() || different > 0)
      Fail(product, name, absl::StrCat("rows on the GPU: ", status.ToString(), ", ", different, " bytes differ"));
  }

  std::vector<GemmConfig> ConfigsFor(const Product& product, const GemmCall& call,
                                     const std::vector<TileChoice>& tiles) const {
    if (call.segments.empty()) return {GemmConfig{}};
    const Grouping grouping = !call.segment_a.empty() ? Grouping::kDepth
                              : call.clip_rows        ? Grouping::kRows
                                                      : Grouping::kDense;
    std::vector<GemmConfig> configs;
    if (every_config_ || !tiles.empty()) {
      for (const TileChoice& tile : Candidates(product.scaling, grouping)) {
        const bool wanted = tiles.empty() || std::any_of(tiles.begin(), tiles.end(), [&](const TileChoice& t) {
                              return t.block_m == tile.block_m && t.block_n == tile.block_n && t.swap == tile.swap &&
                                     t.multicast == tile.multicast;
                            });
        const GemmTraits traits = TraitsOf(tile, product.scaling, product.output, grouping);
        if (wanted && traits.legal()) configs.push_back({traits, BandOf(traits, launcher_.sms())});
      }
      return configs;
    }
    return {launcher_.ConfigOf(call), FallbackConfig({product.scaling, product.output, grouping, 0, 0, {}})};
  }

  static std::string KindOf(const Product& product) {
    return absl::StrCat(product.kind,
                        product.scaling == KernelScaling::kRowBlock ? " 1d2d"
                        : product.scaling == KernelScaling::kRowRow ? " 1d1d"
                                                                    : " bf16",
                        product.output == KernelOutput::kBf16  ? " bf16"
                        : product.output == KernelOutput::kF32 ? " f32"
                                                               : " f32+=");
  }
  void Note(const Product& product, const std::string& name, const CheckOutcome& outcome) {
    Tally& tally = tallies_[KindOf(product)];
    ++tally.runs;
    tally.frobenius = std::max(tally.frobenius, outcome.frobenius);
    tally.largest = std::max(tally.largest, outcome.largest);
    if (!outcome.ok) {
      Fail(product, name,
           absl::StrCat("frobenius ", outcome.frobenius, " largest ", outcome.largest, " unwritten or NaN ",
                        outcome.not_finite, " bytes outside ", outcome.outside));
    }
  }
  void Fail(const Product& product, const std::string& name, const std::string& why) {
    Tally& tally = tallies_[KindOf(product)];
    ++tally.failures;
    if (++printed_ <= 60) std::printf("FAIL %s: %s\n", name.c_str(), why.c_str());
    std::fflush(stdout);
  }

  GemmLauncher& launcher_;
  const bool every_config_;
  const bool only_bf16_;
  bool planning_ = false;
  std::vector<GemmTraits> planned_;
  TestKernels kernels_;
  std::map<std::string, Tally> tallies_;
  int printed_ = 0;
};

// One kernel of each structure: swapped or not, one or two slabs and math warpgroups, promotion overlapped or in turns,
// operands shared or not, TMA stores and row copies, pipelines that go round several times, blocks with several tiles.
void RunShortGrid(Checker& checker) {
  uint64_t seed = 1;
  const std::vector<TileChoice> tiles = {{16, 64, true, Multicast::kNone},    {64, 128, true, Multicast::kNone},
                                         {48, 64, true, Multicast::kA},       {128, 64, false, Multicast::kNone},
                                         {128, 128, false, Multicast::kB},    {128, 112, false, Multicast::kNone},
                                         {128, 160, false, Multicast::kA},    {128, 192, false, Multicast::kB},
                                         {256, 128, false, Multicast::kNone}, {256, 112, false, Multicast::kA}};
  for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kBf16, KernelOutput::kF32, KernelOutput::kF32Add}) {
      Product p{"dense", scaling, output, 161, 328, 400, {}};
      p.sfa_m_major = output == KernelOutput::kBf16;
      p.seed = seed += 10;
      checker.Run(p);
    }
    Product all{"dense", scaling, KernelOutput::kBf16, 300, 584, 2320, {}};
    all.seed = seed += 10;
    checker.Run(all, tiles);
  }
  // More tiles than the GPU has SMs.
  Product many{"dense", KernelScaling::kRowBlock, KernelOutput::kBf16, 520, 4616, 272, {}};
  many.seed = seed += 10;
  checker.Run(many, {tiles[1], tiles[4], tiles[8]});
  const std::vector<int64_t> groups = {300, 1, 0, 17, 129};
  for (const char* kind : {"contiguous", "masked"}) {
    for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kBf16}) {
      Product p{kind, scaling, KernelOutput::kBf16, 310, 328, 656, groups};
      p.seed = seed += 10;
      checker.Run(p, {tiles[0], tiles[2], tiles[3], tiles[6], tiles[8]});
    }
  }
  for (const KernelScaling scaling : {KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kF32, KernelOutput::kF32Add}) {
      Product p{"kgrouped", scaling, output, 200, 328, 0, {144, 0, 400, 1040}};
      p.seed = seed += 10;
      checker.Run(p);
    }
  }
  // Rows that do not end on 16 bytes.
  Product add{"dense", KernelScaling::kRowBlock, KernelOutput::kF32Add, 161, 331, 401, {}};
  add.seed = seed += 10;
  checker.Run(add);
  Product ragged{"dense", KernelScaling::kRowBlock, KernelOutput::kBf16, 161, 331, 401, {}};
  ragged.seed = seed += 10;
  checker.Run(ragged, {tiles[0], tiles[2], tiles[3], tiles[6], tiles[8]});
  for (const char* kind : {"contiguous", "masked"}) {
    Product p{kind, KernelScaling::kRowBlock, KernelOutput::kBf16, 310, 331, 401, groups};
    p.seed = seed += 10;
    checker.Run(p, {tiles[0], tiles[3], tiles[8]});
  }
}

// `effort`: products per shape class.
void RunGrid(Checker& checker, int effort) {
  std::mt19937 random(7);
  const auto pick = [&](const auto& list) { return list[random() % std::size(list)]; };
  const int64_t ms[] = {0,   1,   2,   7,   8,   16,  17,  31,  33,  64,  65,   100,
                        127, 128, 129, 200, 255, 256, 257, 300, 511, 513, 1025, 4097};
  const int64_t ns[] = {8, 64, 72, 128, 136, 192, 256, 576, 1000, 2112};
  const int64_t ks[] = {16, 128, 144, 256, 400, 512, 1040, 2048};
  uint64_t seed = 1;
  for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kBf16, KernelOutput::kF32, KernelOutput::kF32Add}) {
      for (const int64_t m : ms) {
        for (int i = 0; i < effort; ++i) {
          Product p{"dense", scaling, output, m, pick(ns), pick(ks), {}};
          p.sfa_m_major = random() % 2;
          p.sfb_m_major = scaling == KernelScaling::kRowRow && random() % 2;
          p.d_padding = random() % 2 * 8;
          p.seed = seed += 10;
          checker.Run(p);
        }
      }
      // K = 0 gives zeros, or leaves D alone.
      checker.Run({"dense", scaling, output, 33, 136, 0, {}});
    }
  }
  const std::vector<std::vector<int64_t>> groups = {{5},
                                                    {0, 0, 7},
                                                    {1, 1, 1, 1},
                                                    {128, 64, 0, 200},
                                                    {300, 1, 0, 17, 129},
                                                    {0, 513, 0, 2, 0},
                                                    std::vector<int64_t>(300, 3)};
  for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kBf16}) {
    for (const char* kind : {"contiguous", "masked"}) {
      for (const auto& group : groups) {
        for (int i = 0; i < effort; ++i) {
          Product p{kind, scaling, KernelOutput::kBf16, 530, pick(ns), pick(ks), group};
          if (group.size() > 100) p.m = 5, p.n = 72, p.k = 144;
          p.sfa_m_major = random() % 2;
          p.d_padding = random() % 2 * 8;
          p.seed = seed += 10;
          checker.Run(p);
          if (scaling == KernelScaling::kBf16) {
            p.output = KernelOutput::kF32;
            checker.Run(p);
          }
        }
      }
    }
  }
  // Tiles whose slabs end a group, among many that do not: TMA stores and row copies take turns in the staging buffers.
  for (const char* kind : {"contiguous", "masked"}) {
    for (int round = 0; round < 3; ++round) {
      Product p{kind, KernelScaling::kRowBlock, KernelOutput::kBf16, 384, 7168, 528, {}};
      for (int g = 0; g < 32; ++g) p.groups.push_back(134 + static_cast<int64_t>(random() % 116));
      p.seed = seed += 10;
      checker.Run(p);
    }
  }
  const std::vector<std::vector<int64_t>> depths = {
      {128, 256}, {0, 512, 16}, {144, 0, 400, 1040}, std::vector<int64_t>(60, 48)};
  for (const KernelScaling scaling : {KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kF32, KernelOutput::kF32Add}) {
      for (const auto& depth : depths) {
        Product p{"kgrouped", scaling, output, pick(ms) + 1, pick(ns), 0, depth};
        p.sfa_m_major = random() % 2;
        p.sfb_m_major = random() % 2;
        p.seed = seed += 10;
        checker.Run(p);
      }
    }
  }
}

// Any N and K: rows that do not end on 16 bytes, in any operand.
void RunRaggedGrid(Checker& checker) {
  struct Extents {
    int64_t m, n, k;
  };
  uint64_t seed = uint64_t{1} << 20;
  for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kBf16, KernelOutput::kF32, KernelOutput::kF32Add}) {
      for (const Extents& e : {Extents{1, 1001, 1041}, {17, 77, 333}, {100, 1, 1}, {129, 331, 129}, {513, 130, 15}}) {
        // A sum of a few products is much larger than the others now and then, and so is what BF16 rounds off it.
        const int64_t k = output == KernelOutput::kBf16 && e.k < 100 ? e.k + 100 : e.k;
        Product p{"dense", scaling, output, e.m, e.n, k, {}};
        p.seed = seed += 10;
        p.sfa_m_major = seed / 10 % 2 == 0;
        p.sfb_m_major = scaling == KernelScaling::kRowRow && seed / 10 % 3 == 0;
        p.d_padding = seed / 10 % 4 == 1 ? 8 : 0;
        checker.Run(p);
      }
    }
  }
  const std::vector<int64_t> rows = {300, 1, 0, 17, 129};
  for (const char* kind : {"contiguous", "masked"}) {
    for (const auto& [scaling, output] :
         {std::pair(KernelScaling::kRowBlock, KernelOutput::kBf16),
          std::pair(KernelScaling::kBf16, KernelOutput::kBf16), std::pair(KernelScaling::kBf16, KernelOutput::kF32)}) {
      Product p{kind, scaling, output, 310, 331, 333, rows};
      p.seed = seed += 10;
      checker.Run(p);
    }
  }
  // K of a group begins on 16 bytes, whatever M and N are.
  for (const KernelOutput output : {KernelOutput::kF32, KernelOutput::kF32Add}) {
    for (const KernelScaling scaling : {KernelScaling::kRowRow, KernelScaling::kBf16}) {
      Product p{"kgrouped", scaling, output, 77, 331, 0, {16, 0, 400, 2000}};
      if (scaling == KernelScaling::kBf16) p.groups = {8, 24, 0, 136, 1000};
      p.seed = seed += 10;
      checker.Run(p);
    }
  }
}

// Groups that take many tiles each.
void RunLargeGroups(Checker& checker) {
  uint64_t seed = uint64_t{1} << 21;
  for (const char* kind : {"contiguous", "masked"}) {
    for (const auto& [scaling, output] : {std::pair(KernelScaling::kRowBlock, KernelOutput::kBf16),
                                          std::pair(KernelScaling::kBf16, KernelOutput::kF32)}) {
      Product p{kind, scaling, output, 2048, 584, 528, {1999, 0, 1024, 130, 2}};
      p.sfa_m_major = scaling == KernelScaling::kRowBlock;
      p.seed = seed += 10;
      checker.Run(p);
    }
    Product p{kind, KernelScaling::kRowBlock, KernelOutput::kBf16, 2001, 1000, 272, {1, 2001, 640}};
    p.seed = seed += 10;
    checker.Run(p);
  }
}

// More rows than one launch takes: only with `many_rows`.
void RunQuantizeGrid(Checker& checker, bool many_rows) {
  uint64_t seed = uint64_t{1} << 22;
  for (const QuantizeInput input : {QuantizeInput::kBf16, QuantizeInput::kF32}) {
    for (const QuantizeShape shape : {QuantizeShape::kRow, QuantizeShape::kBlock}) {
      const int64_t most = shape == QuantizeShape::kRow ? 65535 * 8 : 65535 * 128;
      for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, 1}, {7, 127}, {129, 129}, {255, 1043}, {1000, 642}}) {
        checker.Run(QuantizeCase{input, shape, m, k, m % 2 * 16, false, seed += 10});
        if (shape == QuantizeShape::kRow) checker.Run(QuantizeCase{input, shape, m, k, 0, true, seed += 10});
      }
      if (many_rows && input == QuantizeInput::kBf16)
        checker.Run(QuantizeCase{input, shape, most + 3, 5, 0, shape == QuantizeShape::kRow, seed += 10});
    }
  }
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // Whoever ends a long run sees what it has found.
  bool every_config = false;
  bool only_bf16 = false;
  int effort = 2;
  gemmd::GemmLauncher::Options options;
  options.compile.threads = 2;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--all-configs") every_config = true;
    if (argument == "--bf16") only_bf16 = true;
    if (argument == "--plain-scales") options.macros.emplace_back("GEMMD_PLAIN_SCALES");
    if (absl::StartsWith(argument, "--effort=")) effort = std::atoi(argument.c_str() + 9);
    if (absl::StartsWith(argument, "--cache=")) options.cache_directory = argument.substr(8);
    if (absl::StartsWith(argument, "--threads=")) options.compile.threads = std::atoi(argument.c_str() + 10);
  }
  auto launcher = gemmd::GemmLauncher::Create(options);
  if (!launcher.ok()) {
    std::printf("%s\n", launcher.status().ToString().c_str());
    return 77;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  gemmd::Checker checker(**launcher, every_config, only_bf16);
  const auto run = [&] {
    gemmd::RunQuantizeGrid(checker, effort > 0);
    if (effort == 0) return gemmd::RunShortGrid(checker);
    gemmd::RunGrid(checker, effort);
    gemmd::RunRaggedGrid(checker);
    gemmd::RunLargeGroups(checker);
  };
  checker.set_planning(true);
  run();
  checker.set_planning(false);
  const std::vector<gemmd::GemmTraits>& kernels = checker.planned();
  std::atomic<size_t> next = 0;
  std::vector<std::thread> compilers;
  for (int t = 0; t < options.compile.threads; ++t) {
    compilers.emplace_back([&] {
      for (size_t i = next++; i < kernels.size(); i = next++) {
        if (const auto made = (*launcher)->Prepare(kernels[i]); !made.ok())
          std::printf("%s\n", made.status().ToString().c_str());
      }
    });
  }
  for (std::thread& thread : compilers) thread.join();
  std::printf("%s%zu kernels compiled or loaded in %.1f s\n",
              options.macros.empty() ? "" : "plain scales: ", kernels.size(), seconds());
  std::fflush(stdout);
  run();
  std::printf("grid took %.1f s\n", seconds());
  return checker.Report();
}
