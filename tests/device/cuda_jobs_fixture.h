// SPDX-License-Identifier: Apache-2.0
// For tests that run checked jobs on the CUDA device: the device, regions with seeded random contents in host or GPU
// memory, batches. Skips where there is no Hopper GPU.
#ifndef GEMMD_TESTS_DEVICE_CUDA_JOBS_FIXTURE_H_
#define GEMMD_TESTS_DEVICE_CUDA_JOBS_FIXTURE_H_

#include "gpu/cuda/cuda_device.h"
#include "gpu/job_check.h"
#include "gpu/region_table.h"
#include "proto/element_type.h"
#include "proto/shared_memory.h"
#include "proto/worker_counters.h"
#include "tests/gpu/job_samples.h"

#include "gtest/gtest.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <utility>
#include <variant>
#include <vector>

namespace gemmd {

using Bytes = std::vector<uint8_t>;

enum class Place { kHost, kGpu };

inline constexpr uint8_t kPattern = 0xee;  // What D holds before.

inline int64_t BlocksOf(int64_t extent) { return (extent + 127) / 128; }

template <typename T>
Bytes BytesOf(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

class CudaJobsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    CudaDeviceOptions options;
    options.kernels.counters = &counters_;
    absl::StatusOr<std::unique_ptr<Device>> device = CudaDevice::Open(options);
    if (!device.ok()) GTEST_SKIP() << device.status();
    device_ = *std::move(device);
  }

  const GemmLauncher& launcher() const { return static_cast<const CudaDevice&>(*device_).launcher(); }

  Bytes E4m3(int64_t count) {
    Bytes bytes(static_cast<size_t>(count));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_() & 0xbf);  // No NaN.
    return bytes;
  }
  Bytes Bf16(int64_t count) {
    std::uniform_real_distribution<float> values(-2, 2);
    std::vector<uint16_t> bits(static_cast<size_t>(count));
    for (uint16_t& value : bits) value = FloatToBf16(values(random_));
    return BytesOf(bits);
  }
  Bytes Scales(int64_t count) {
    std::uniform_real_distribution<float> values(0.01f, 2.0f);
    std::vector<float> scales(static_cast<size_t>(count));
    for (float& value : scales) value = values(random_);
    return BytesOf(scales);
  }

  // A region with these contents; its id.
  uint64_t Region(Place place, Bytes bytes) {
    if (bytes.empty()) bytes.resize(1);
    UniqueFd fd = *CreateSealedMemory(bytes.size());
    SharedMapping mapping = *SharedMapping::Map(fd.get(), bytes.size(), Access::kReadWrite);
    std::memcpy(mapping.data(), bytes.data(), bytes.size());
    auto host = device_->Map({RegionKind::kHost, Access::kReadWrite, bytes.size()}, std::move(fd));
    EXPECT_TRUE(host.ok()) << host.status();
    std::shared_ptr<DeviceMemory> memory = *host;
    if (place == Place::kGpu) {
      memory = device_->Allocate(bytes.size())->memory;
      Job copy;
      copy.gemm.op = Op::kCopy;
      copy.gemm.m = 1;
      copy.gemm.k = static_cast<int64_t>(bytes.size());
      copy.gemm.operand(OperandIndex::kA) = AllOf(*host);
      copy.gemm.operand(OperandIndex::kD) = AllOf(memory);
      Batch batch;
      batch.jobs.push_back(std::move(copy));
      Run(std::move(batch));
    }
    mappings_.push_back(std::move(mapping));
    EXPECT_TRUE(regions_.Add(++last_region_, std::move(memory), Access::kReadWrite));
    return last_region_;
  }

  Bytes Read(uint64_t region) {
    const std::shared_ptr<DeviceMemory> memory = regions_.Find(region).memory;
    Bytes bytes(memory->byte_size());
    EXPECT_TRUE(memory->ReadBytes(0, bytes.size(), bytes.data()).ok());
    return bytes;
  }

  void Run(Batch batch) {
    std::vector<Reason> reasons;
    device_->Submit(std::move(batch), [&](Batch, BatchResult result) { reasons = result.reasons; });
    device_->Wait();
    for (const Reason& reason : reasons) ASSERT_EQ(reason.rule, Rule::kNone) << Describe(reason);
  }
  void Run(Gemm gemm) {
    Batch batch;
    batch.jobs.emplace_back().gemm = std::move(gemm);
    Run(std::move(batch));
  }

  static Operand AllOf(std::shared_ptr<DeviceMemory> memory) {
    Operand operand;
    operand.dtype = DType::kU8;
    operand.rank = 1;
    operand.shape[0] = static_cast<int64_t>(memory->byte_size());
    operand.strides[0] = 1;
    operand.memory = std::move(memory);
    return operand;
  }

  static OperandDescriptor Matrix(uint64_t region, DType dtype, std::initializer_list<int64_t> shape) {
    return testing::MakeOperand(region, 0, dtype, shape);
  }

  // The job as a device gets it.
  Gemm Checked(const JobDescriptor& job) {
    auto checked = CheckJob(job, [this](uint64_t id) { return regions_.Find(id); });
    if (const Reason* reason = std::get_if<Reason>(&checked)) {
      ADD_FAILURE() << Describe(*reason);
      return {};
    }
    return std::get<Gemm>(std::move(checked));
  }

  std::mt19937 random_{7};
  const WorkerCounters counters_ = *WorkerCounters::Create();
  std::unique_ptr<Device> device_;
  RegionTable regions_;
  std::vector<SharedMapping> mappings_;
  uint64_t last_region_ = 0;
};

}  // namespace gemmd

#endif  // GEMMD_TESTS_DEVICE_CUDA_JOBS_FIXTURE_H_
