// SPDX-License-Identifier: Apache-2.0
// first_product --cache=DIR: how long until a device serves, and until it serves a shape well that it has never seen?
// Opens CudaDevice with that folder of kernels (empty: cold; left by an earlier run: warm), times the first product of
// a shape nobody has asked for, and repeats it until the kernel that was selected for it runs. One JSON object.
#include "gpu/cuda/cuda_device.h"
#include "gpu/cuda/cuda_memory.h"
#include "proto/element_type.h"
#include "proto/shared_memory.h"

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using Clock = std::chrono::steady_clock;

double MillisSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

constexpr double kGiveUpMillis = 20'000;

// Host operands filled with one value, so that every element of D is known.
class Tensors {
 public:
  explicit Tensors(Device& device) : device_(device) {}

  template <typename T>
  Operand Make(DType dtype, int64_t rows, int64_t columns, T value, T** data) {
    const uint64_t bytes = static_cast<uint64_t>(rows * columns) * sizeof(T);
    UniqueFd fd = *CreateSealedMemory(bytes);
    mappings_.push_back(*SharedMapping::Map(fd.get(), bytes, Access::kReadWrite));
    T* const first = reinterpret_cast<T*>(mappings_.back().data());
    std::fill_n(first, rows * columns, value);
    if (data != nullptr) *data = first;
    Operand operand;
    operand.memory = *device_.Map({RegionKind::kHost, Access::kReadWrite, bytes}, std::move(fd));
    operand.region = mappings_.size();
    operand.dtype = dtype;
    operand.rank = 2;
    operand.shape = {rows, columns};
    operand.strides = {columns, 1};
    return operand;
  }

 private:
  Device& device_;
  std::vector<SharedMapping> mappings_;
};

struct Outcome {
  double first_ms = 0;
  std::string first_config;
  bool right = false;
  double selected_ms = -1;  // From the first submission; -1: never.
  std::string selected_config;
  double later_ms = 0;  // One product then.
  uint64_t compiled = 0;
};

Outcome RunShape(CudaDevice& device, int64_t m, int64_t n, int64_t k) {
  Tensors tensors(device);
  uint16_t* d = nullptr;
  constexpr uint8_t kOne = 0x38;
  Job job;
  job.gemm.op = Op::kDense;
  job.gemm.scaling = Scaling::k1D2D;
  job.gemm.m = m;
  job.gemm.n = n;
  job.gemm.k = k;
  const int64_t blocks = (k + 127) / 128;
  job.gemm.operand(OperandIndex::kA) = tensors.Make<uint8_t>(DType::kE4m3, m, k, kOne, nullptr);
  job.gemm.operand(OperandIndex::kB) = tensors.Make<uint8_t>(DType::kE4m3, n, k, kOne, nullptr);
  job.gemm.operand(OperandIndex::kSfa) = tensors.Make<float>(DType::kF32, m, blocks, 0.5f, nullptr);
  job.gemm.operand(OperandIndex::kSfb) = tensors.Make<float>(DType::kF32, (n + 127) / 128, blocks, 0.5f, nullptr);
  job.gemm.operand(OperandIndex::kD) = tensors.Make<uint16_t>(DType::kBf16, m, n, 0xffff, &d);
  const auto run = [&] {
    Batch batch;
    batch.jobs.push_back(job);
    device.Submit(std::move(batch), [](Batch, BatchResult result) {
      if (result.reasons[0].rule != Rule::kNone) std::_Exit(4);
    });
    device.Wait();
  };
  GemmShape shape{KernelScaling::kRowBlock, KernelOutput::kBf16, Grouping::kDense, n, k, {m}};
  Outcome outcome;
  outcome.selected_config = Describe(SelectConfig(shape, device.launcher().sms()).traits);
  const uint64_t compiles = device.launcher().counts().compiles;
  const auto begin = Clock::now();
  run();
  outcome.first_ms = MillisSince(begin);
  outcome.first_config = Describe(device.launcher().last_config().traits);
  outcome.right = std::count(d, d + m * n, FloatToBf16(static_cast<float>(k) * 0.25f)) == m * n;
  while (MillisSince(begin) < kGiveUpMillis) {
    if (Describe(device.launcher().last_config().traits) == outcome.selected_config) {
      outcome.selected_ms = MillisSince(begin);
      break;
    }
    absl::SleepFor(absl::Milliseconds(2));
    run();
  }
  const auto later = Clock::now();
  run();
  outcome.later_ms = MillisSince(later);
  outcome.compiled = device.launcher().counts().compiles - compiles;
  return outcome;
}

int Run(const CudaDeviceOptions& options) {
  // The driver's own start is nobody's business here, and is reported for itself.
  const auto begin = Clock::now();
  if (cudaFree(nullptr) != cudaSuccess) {
    std::printf("no GPU\n");
    return 77;
  }
  const double context_ms = MillisSince(begin);
  const auto open = Clock::now();
  absl::StatusOr<std::unique_ptr<Device>> opened = CudaDevice::Open(options);
  const double open_ms = MillisSince(open);
  if (!opened.ok()) {
    std::printf("%s\n", opened.status().ToString().c_str());
    return 77;
  }
  auto& device = static_cast<CudaDevice&>(**opened);
  const KernelCache::Counts counts = device.launcher().counts();
  std::printf(
      "{\"gpu\": \"%s\", \"cores\": %u, \"context_ms\": %.1f, \"open_ms\": %.1f, \"open_compiled\": %lu, "
      "\"open_loaded\": %lu, \"products\": [\n",
      device.traits().name.c_str(), std::thread::hardware_concurrency(), context_ms, open_ms,
      static_cast<unsigned long>(counts.compiles), static_cast<unsigned long>(counts.disk_hits));
  // Each selects a kernel of its own, none of them the one that serves any shape.
  struct Shape {
    int64_t m, n, k;
  };
  const std::vector<Shape> shapes = {
      {3, 1160, 1552}, {77, 2056, 1040}, {1500, 3080, 2064}, {4000, 576, 7168}, {4000, 2112, 7168}};
  bool ok = true;
  for (const Shape& shape : shapes) {
    const Outcome outcome = RunShape(device, shape.m, shape.n, shape.k);
    std::printf(
        " {\"shape\": \"M%ld N%ld K%ld\", \"first_ms\": %.2f, \"first_config\": \"%s\", \"right\": %s, "
        "\"selected_config\": \"%s\", \"selected_after_ms\": %.1f, \"later_ms\": %.2f, \"compiled\": %lu}%s\n",
        static_cast<long>(shape.m), static_cast<long>(shape.n), static_cast<long>(shape.k), outcome.first_ms,
        outcome.first_config.c_str(), outcome.right ? "true" : "false", outcome.selected_config.c_str(),
        outcome.selected_ms, outcome.later_ms, static_cast<unsigned long>(outcome.compiled),
        &shape == &shapes.back() ? "" : ",");
    std::fflush(stdout);
    ok = ok && outcome.right && outcome.selected_ms >= 0;
  }
  std::printf("]}\n");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  gemmd::CudaDeviceOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (absl::StartsWith(argument, "--cache=")) options.kernels.cache_directory = argument.substr(8);
  }
  return gemmd::Run(options);
}
