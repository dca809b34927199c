// SPDX-License-Identifier: Apache-2.0
// How fast the CPU device is: FP8 products through Device::Submit against cblas_sgemm of the same shape, in turn, on
// the same number of threads. The device dequantizes its operands; the BLAS gets floats. One JSON object on stdout.
#include "gpu/cpu/cpu_device.h"
#include "proto/element_type.h"
#include "proto/shared_memory.h"

#include "absl/synchronization/notification.h"
#include <cblas.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

struct Shape {
  int64_t m, n, k;
};

constexpr Shape kShapes[] = {{1024, 4096, 4096}, {1, 2112, 7168}, {64, 2112, 7168}, {1, 4096, 7168},
                             {64, 4096, 7168},   {16, 128, 128},  {128, 4096, 4096}};
constexpr int kLeastRounds = 5;
constexpr int kMostRounds = 200;
constexpr double kSecondsPerShape = 2.0;

// One region of the device, and this program's view of it.
struct Region {
  std::shared_ptr<DeviceMemory> memory;
  SharedMapping mapping;
};

Region MakeRegion(Device& device, int64_t byte_size) {
  auto fd = CreateSealedMemory(static_cast<uint64_t>(byte_size));
  if (!fd.ok()) std::abort();
  auto mapping = SharedMapping::Map(fd->get(), static_cast<uint64_t>(byte_size), Access::kReadWrite);
  auto memory = device.Map({RegionKind::kHost, Access::kReadWrite, static_cast<uint64_t>(byte_size)}, *std::move(fd));
  if (!mapping.ok() || !memory.ok()) std::abort();
  return {*std::move(memory), *std::move(mapping)};
}

Operand MatrixOf(const Region& region, DType dtype, int64_t rows, int64_t columns) {
  Operand operand;
  operand.memory = region.memory;
  operand.dtype = dtype;
  operand.rank = 2;
  operand.shape = {rows, columns, 0};
  operand.strides = {columns, 1, 0};
  return operand;
}

Region RandomE4m3(Device& device, int64_t count, std::mt19937& random) {
  Region region = MakeRegion(device, count);
  std::normal_distribution<float> normal(0.0f, 100.0f);
  for (int64_t i = 0; i < count; ++i) region.mapping.data()[i] = std::byte{FloatToE4m3(normal(random))};
  return region;
}

Region Scales(Device& device, int64_t count) {
  Region region = MakeRegion(device, count * 4);
  std::fill_n(reinterpret_cast<float*>(region.mapping.data()), count, 0.01f);
  return region;
}

double Seconds(absl::FunctionRef<void()> work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void RunOnce(Device& device, const Gemm& gemm) {
  Batch batch;
  batch.jobs.emplace_back().gemm = gemm;
  absl::Notification finished;
  device.Submit(std::move(batch), [&](Batch, BatchResult result) {
    if (result.reasons[0].rule != Rule::kNone) std::abort();
    finished.Notify();
  });
  finished.WaitForNotification();
}

nlohmann::json Measure(Device& device, const Shape& shape) {
  std::mt19937 random(1);
  const int64_t k_blocks = (shape.k + 127) / 128;
  Gemm gemm;
  gemm.op = Op::kDense;
  gemm.scaling = Scaling::k1D2D;
  gemm.m = shape.m;
  gemm.n = shape.n;
  gemm.k = shape.k;
  gemm.operand(OperandIndex::kA) =
      MatrixOf(RandomE4m3(device, shape.m * shape.k, random), DType::kE4m3, shape.m, shape.k);
  gemm.operand(OperandIndex::kB) =
      MatrixOf(RandomE4m3(device, shape.n * shape.k, random), DType::kE4m3, shape.n, shape.k);
  gemm.operand(OperandIndex::kSfa) = MatrixOf(Scales(device, shape.m * k_blocks), DType::kF32, shape.m, k_blocks);
  const int64_t n_blocks = (shape.n + 127) / 128;
  gemm.operand(OperandIndex::kSfb) = MatrixOf(Scales(device, n_blocks * k_blocks), DType::kF32, n_blocks, k_blocks);
  gemm.operand(OperandIndex::kD) = MatrixOf(MakeRegion(device, shape.m * shape.n * 2), DType::kBf16, shape.m, shape.n);

  const std::vector<float> a(static_cast<size_t>(shape.m * shape.k), 0.5f);
  const std::vector<float> b(static_cast<size_t>(shape.n * shape.k), 0.5f);
  std::vector<float> d(static_cast<size_t>(shape.m * shape.n));
  const auto blas = [&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(shape.m), static_cast<int>(shape.n),
                static_cast<int>(shape.k), 1.0f, a.data(), static_cast<int>(shape.k), b.data(),
                static_cast<int>(shape.k), 0.0f, d.data(), static_cast<int>(shape.n));
  };
  std::vector<double> device_seconds;
  std::vector<double> blas_seconds;
  double total = 0;
  for (int round = 0; round < kMostRounds && (round < kLeastRounds || total < kSecondsPerShape); ++round) {
    openblas_set_num_threads(1);
    device_seconds.push_back(Seconds([&] { RunOnce(device, gemm); }));
    openblas_set_num_threads(static_cast<int>(device.traits().cores));
    blas_seconds.push_back(Seconds(blas));
    total += device_seconds.back() + blas_seconds.back();
  }
  openblas_set_num_threads(1);
  const double flops = 2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  const double device_median = Median(device_seconds);
  const double blas_median = Median(blas_seconds);
  return {{"m", shape.m},
          {"n", shape.n},
          {"k", shape.k},
          {"rounds", device_seconds.size()},
          {"device_us", device_median * 1e6},
          {"blas_us", blas_median * 1e6},
          {"predicted_us", static_cast<double>(device.PredictNanos(gemm)) / 1e3},
          {"device_gflops", flops / device_median / 1e9},
          {"blas_gflops", flops / blas_median / 1e9},
          {"ratio", blas_median / device_median}};
}

}  // namespace
}  // namespace gemmd

int main() {
  auto device = gemmd::CpuDevice::Open({});
  if (!device.ok()) {
    std::cerr << device.status() << "\n";
    return 1;
  }
  const gemmd::DeviceTraits& traits = (*device)->traits();
  nlohmann::json report = {{"device", traits.name}, {"threads", traits.cores}, {"blas", openblas_get_config()}};
  for (const gemmd::Shape& shape : gemmd::kShapes) report["shapes"].push_back(gemmd::Measure(**device, shape));
  std::cout << report.dump(2) << "\n";
  return 0;
}
