// SPDX-License-Identifier: Apache-2.0
// GemmLauncher on a GPU without a free byte: what was loaded at the start runs, a kernel that finds no room gives way
// to the fallback, and runs once there is room again. Takes all of the GPU's memory: runs alone. Results are checked
// against FP64 when it is free again, because checking takes memory.
#include "gpu/cuda/gemm_launcher.h"
#include "gpu/jit/nvrtc_compiler.h"
#include "proto/worker_counters.h"
#include "tests/device/gpu_workbench.h"
#include "tests/device/quantize_check.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

// The driver takes memory for code in large pieces. Copies of this kernel, large ones and then small ones, take what is
// left of them. With null it does nothing.
constexpr char kFiller[] = R"kernel(
template <int kTerms>
__global__ void Fill(float* x) {
  if (x == nullptr) return;
  float sum = *x;
#pragma unroll
  for (int i = 0; i < kTerms; ++i) sum = sum * x[1] + static_cast<float>(i);
  *x = sum;
}
)kernel";

std::vector<CompiledKernel> CompileFillers() {
  static const KernelSource source{"filler.cuh", kFiller};
  const absl::StatusOr<NvrtcCompiler> compiler = NvrtcCompiler::Create(absl::MakeConstSpan(&source, 1), {"filler.cuh"});
  std::vector<CompiledKernel> fillers;
  for (const char* name : {"Fill<1024>", "Fill<1>"}) fillers.push_back(*compiler->Compile(compiler->KeyOf(name)));
  return fillers;
}

// Takes all of the GPU's memory while it lives.
class FullMemory {
 public:
  explicit FullMemory(const std::vector<CompiledKernel>& fillers) {
    for (size_t bytes = kLargestChunk; bytes >= kSmallestChunk; bytes /= 2) {
      void* chunk = nullptr;
      while (cudaMalloc(&chunk, bytes) == cudaSuccess) chunks_.push_back(chunk);
      EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    }
    for (const CompiledKernel& filler : fillers) {
      for (int i = 0; i < kMostCopies && LoadCopy(filler); ++i) continue;
    }
    Must(cudaDeviceSynchronize(), "filling the GPU's memory");
  }
  ~FullMemory() {
    for (cudaLibrary_t library : libraries_) cudaLibraryUnload(library);
    for (void* chunk : chunks_) cudaFree(chunk);
  }
  FullMemory(const FullMemory&) = delete;
  FullMemory& operator=(const FullMemory&) = delete;

 private:
  static constexpr size_t kLargestChunk = size_t{1} << 30;
  static constexpr size_t kSmallestChunk = 256;
  static constexpr int kMostCopies = 4096;

  // Whether there was room. Launches it too: a driver may load code that late.
  bool LoadCopy(const CompiledKernel& filler) {
    cudaLibrary_t library = nullptr;
    cudaKernel_t kernel = nullptr;
    float* nothing = nullptr;
    void* parameters[] = {&nothing};
    cudaError_t error = cudaLibraryLoadData(&library, filler.cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
    if (error == cudaSuccess) {
      libraries_.push_back(library);
      error = cudaLibraryGetKernel(&kernel, library, filler.symbol.c_str());
    }
    if (error == cudaSuccess) error = cudaLaunchKernel(kernel, dim3(1), dim3(1), parameters, 0, nullptr);
    if (error == cudaSuccess) return true;
    EXPECT_EQ(error, cudaErrorMemoryAllocation) << cudaGetErrorString(error);
    cudaGetLastError();
    return false;
  }

  std::vector<void*> chunks_;
  std::vector<cudaLibrary_t> libraries_;
};

// A product, and the kernels that may run it.
struct Case {
  Product product;
  std::unique_ptr<Workbench> bench;
  GemmConfig selected;
  GemmConfig fallback;
};

class CudaFullMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GemmLauncher::Options options;
    options.compile.threads = 8;
    options.counters = &counters_;
    absl::StatusOr<std::unique_ptr<GemmLauncher>> launcher = GemmLauncher::Create(options);
    if (!launcher.ok()) GTEST_SKIP() << launcher.status();
    launcher_ = *std::move(launcher);
    const absl::Status status = launcher_->PrepareFallbacks();
    ASSERT_TRUE(status.ok()) << status;
    fillers_ = CompileFillers();
    MakeCases();
  }

  static TestKernels& Kernels() {
    static TestKernels* const kernels = new TestKernels;
    return *kernels;
  }

  // Products whose selected kernels are all different, and none of them a fallback.
  void MakeCases() {
    std::vector<Product> products;
    for (const int64_t m : {24, 100, 200, 300, 500, 1000})
      products.push_back({"dense", KernelScaling::kRowBlock, KernelOutput::kBf16, m, 2112, 1040, {}});
    for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kRowRow, KernelScaling::kBf16}) {
      for (const KernelOutput output : {KernelOutput::kBf16, KernelOutput::kF32, KernelOutput::kF32Add})
        products.push_back({"dense", scaling, output, 40, 576, 528, {}});
    }
    products.push_back({"contiguous", KernelScaling::kRowBlock, KernelOutput::kBf16, 0, 576, 528, {7, 0, 5, 1}});
    products.push_back({"masked", KernelScaling::kRowBlock, KernelOutput::kBf16, 160, 576, 528, {70, 0, 129, 1}});
    products.push_back({"kgrouped", KernelScaling::kRowRow, KernelOutput::kF32, 200, 328, 0, {144, 400, 1040}});
    products.push_back({"kgrouped", KernelScaling::kBf16, KernelOutput::kF32Add, 77, 331, 0, {8, 200, 136}});
    for (const Product& product : products) {
      Case made{product, std::make_unique<Workbench>(product, Kernels()), {}, {}};
      const Grouping grouping = product.kind == "dense"      ? Grouping::kDense
                                : product.kind == "kgrouped" ? Grouping::kDepth
                                                             : Grouping::kRows;
      made.fallback = FallbackConfig({product.scaling, product.output, grouping, 0, 0, {}});
      made.selected = launcher_->ConfigOf(made.bench->call());
      const bool taken = std::any_of(cases_.begin(), cases_.end(),
                                     [&](const Case& other) { return other.selected.traits == made.selected.traits; });
      if (!taken && made.selected.traits != made.fallback.traits) cases_.push_back(std::move(made));
    }
    ASSERT_GE(cases_.size(), 8u) << "the shapes show nothing";
    Must(cudaDeviceSynchronize(), "filling operands");
  }

  // Which configuration multiplied.
  std::string Run(Case& c) {
    c.bench->ResetOutput();
    const auto begin = std::chrono::steady_clock::now();
    const absl::Status status = launcher_->Launch(c.bench->call(), nullptr);
    launch_us_ = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    EXPECT_TRUE(status.ok()) << c.product.Name() << ": " << status;
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << c.product.Name();
    Must(cudaDeviceSynchronize(), "running");
    return Describe(launcher_->last_config().traits);
  }

  // What the latest runs wrote. Takes memory.
  void ExpectRight() {
    for (Case& c : cases_) {
      const CheckOutcome outcome = c.bench->Check(1);
      EXPECT_TRUE(outcome.ok) << c.product.Name() << ": frobenius " << outcome.frobenius << ", not finite "
                              << outcome.not_finite << ", bytes outside " << outcome.outside;
    }
  }

  uint64_t Misses() const { return counters_.ReadCounts().kernel_misses; }

  const WorkerCounters counters_ = *WorkerCounters::Create();
  std::unique_ptr<GemmLauncher> launcher_;
  std::vector<CompiledKernel> fillers_;
  std::vector<Case> cases_;
  double launch_us_ = 0;  // Of the latest run, for the host.
};

TEST_F(CudaFullMemoryTest, FallbacksRunThoughTheyNeverDidBefore) {
  {
    const FullMemory full(fillers_);
    for (Case& c : cases_) EXPECT_EQ(Run(c), Describe(c.fallback.traits)) << c.product.Name();
  }
  ExpectRight();
}

TEST_F(CudaFullMemoryTest, QuantizesThoughItNeverDidBefore) {
  EXPECT_EQ(CheckQuantize({QuantizeInput::kBf16, QuantizeShape::kRow, 131, 333}, Kernels(),
                          [&](const QuantizeArgs& args) {
                            const FullMemory full(fillers_);
                            const absl::Status status =
                                launcher_->LaunchQuantize(args, QuantizeInput::kBf16, QuantizeShape::kRow, nullptr);
                            Must(cudaDeviceSynchronize(), "quantizing");
                            return status;
                          }),
            "");
}

TEST_F(CudaFullMemoryTest, AKernelThatFindsNoRoomGivesWayToTheFallbackUntilItDoes) {
  int refused = 0;
  double longest_us = 0;
  {
    const FullMemory full(fillers_);
    for (Case& c : cases_) Run(c);  // From now on each selected kernel compiles in the background.
    for (const Case& c : cases_) {
      const absl::StatusOr<bool> ready = launcher_->Prepare(c.selected.traits);  // Waits for that.
      EXPECT_TRUE(ready.ok() || absl::IsResourceExhausted(ready.status())) << ready.status();
      EXPECT_EQ(cudaGetLastError(), cudaSuccess) << c.product.Name();
    }
    for (Case& c : cases_) {
      const uint64_t misses = Misses();
      const std::string config = Run(c);
      const bool missed = Misses() != misses;
      EXPECT_EQ(config, Describe((missed ? c.fallback : c.selected).traits)) << c.product.Name();
      if (missed) ++refused, longest_us = std::max(longest_us, launch_us_);
    }
  }
  ExpectRight();
  const uint64_t compiles = launcher_->counts().compiles;
  const absl::Time deadline =
      absl::Now() + absl::Seconds(10);  // A launcher that was refused waits before it asks again.
  while (Run(cases_[0]) != Describe(cases_[0].selected.traits) && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(1));
  const uint64_t misses = Misses();
  for (Case& c : cases_) EXPECT_EQ(Run(c), Describe(c.selected.traits)) << c.product.Name();
  ExpectRight();
  EXPECT_EQ(Misses(), misses);
  EXPECT_EQ(launcher_->counts().compiles, compiles);
  if (refused == 0) GTEST_SKIP() << "the driver found room for all " << cases_.size() << " kernels";
  std::printf("%d of %zu kernels refused; the longest such launch took %.0f us\n", refused, cases_.size(), longest_us);
}

}  // namespace
}  // namespace gemmd
