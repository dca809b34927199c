// SPDX-License-Identifier: Apache-2.0
// Lets tests/gpu/cpu_device_operations_test.cc, which knows the name CpuDevice, run on the CUDA device: included before
// anything else (compiler option -include), it takes the place of gpu/cpu/cpu_device.h. Both devices have one contract,
// so they have one test.
#ifndef GEMMD_TESTS_DEVICE_CUDA_DEVICE_STAND_IN_H_
#define GEMMD_TESTS_DEVICE_CUDA_DEVICE_STAND_IN_H_

#define GEMMD_GPU_CPU_CPU_DEVICE_H_

#include "gpu/cuda/cuda_device.h"

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <utility>

namespace gemmd {

struct CpuDeviceOptions {
  int threads = 0;
  uint64_t small_batch_ns = 0;
  uint64_t scratch_limit_bytes = 0;
};

class CpuDevice : public Device {
 public:
  // One device for all tests: kernels are compiled once. Skips, by exit status, where there is no Hopper GPU. The
  // device is gone before NVRTC is, which its threads may be using.
  static absl::StatusOr<std::unique_ptr<Device>> Open(const CpuDeviceOptions&) {
    static const std::unique_ptr<Device> device = [] {
      absl::StatusOr<std::unique_ptr<Device>> opened = CudaDevice::Open({});
      if (!opened.ok()) {
        std::cerr << "skipped: " << opened.status() << "\n";
        std::_Exit(77);
      }
      return *std::move(opened);
    }();
    return std::unique_ptr<Device>(new CpuDevice(*device));
  }

  const DeviceTraits& traits() const override { return device_.traits(); }
  absl::StatusOr<std::shared_ptr<DeviceMemory>> Map(const RegionSpec& spec, UniqueFd fd) override {
    // The tests make tensors of shared memory, as the CPU device does.
    RegionSpec host = spec;
    if (host.kind == RegionKind::kTensor) host.kind = RegionKind::kHost;
    return device_.Map(host, std::move(fd));
  }
  absl::StatusOr<Allocation> Allocate(uint64_t byte_size) override { return device_.Allocate(byte_size); }
  absl::StatusOr<PrepareResult> Prepare(const PrepareShape& shape) override { return device_.Prepare(shape); }
  void Submit(Batch batch, BatchDone done) override { device_.Submit(std::move(batch), std::move(done)); }
  void Wait() override { device_.Wait(); }
  uint64_t PredictNanos(const Gemm& gemm) const override { return device_.PredictNanos(gemm); }
  absl::Status Healthy() const override { return device_.Healthy(); }

 private:
  explicit CpuDevice(Device& device) : device_(device) {}
  Device& device_;
};

}  // namespace gemmd

#endif  // GEMMD_TESTS_DEVICE_CUDA_DEVICE_STAND_IN_H_
