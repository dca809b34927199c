// SPDX-License-Identifier: Apache-2.0
// A daemon and a client with memory on GPUs: the fake CUDA driver's two, beside fake workers that fill results; or, if
// GEMMD_TEST_WORKERS names a GPU, that one beside a real worker and the driver of the machine.
#ifndef GEMMD_TESTS_FAULT_GPU_MEMORY_FIXTURE_H_
#define GEMMD_TESTS_FAULT_GPU_MEMORY_FIXTURE_H_

#include "client/client.h"
#include "tests/fault/fault_fixture.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gemmd::testing {

bool OnRealGpu();

// D = A * B^T of ones, 1D2D to FP32: where the operands are in a region, in bytes.
struct ProductOfOnes {
  int64_t m = 32, n = 64, k = 128;

  uint64_t b() const { return static_cast<uint64_t>(m * k); }
  uint64_t sfa() const { return b() + static_cast<uint64_t>(n * k); }
  uint64_t sfb() const { return sfa() + sizeof(float) * static_cast<uint64_t>(m * (k / 128)); }
  // At a multiple of 256 bytes.
  uint64_t d() const {
    return (sfb() + sizeof(float) * static_cast<uint64_t>((n + 127) / 128 * (k / 128)) + 255) / 256 * 256;
  }
  uint64_t d_bytes() const { return sizeof(float) * static_cast<uint64_t>(m * n); }
  uint64_t byte_size() const { return d() + d_bytes(); }

  DenseCall Call(const DeviceRegion& operands, const DeviceRegion& result) const;
  // Writes the operands into the region, and zeros behind them.
  absl::Status WriteOperands(const DeviceRegion& region) const;
  // Whether the region has the result.
  bool IsIn(const DeviceRegion& region) const;
};
inline constexpr ProductOfOnes kSmall;

class GpuMemoryFixture : public ::testing::Test {
 protected:
  // The fake worker's flags beside --fill.
  static void StartDaemon(const std::vector<std::string>& fake_worker_flags = {});
  static void StopDaemon();

  void SetUp() override;

  // A product in the region, which must change nothing but D.
  void ExpectProduct(const DeviceRegion& region);
  // The daemon's own socket for registrations that Client would not make.
  std::shared_ptr<ClientSession> Broker() const;
  const std::string& gpu(size_t i = 0) const { return gpus_[i]->uuid(); }
  // Skips the rest of a test that needs so many.
  bool HasGpus(size_t count) const { return gpus_.size() >= count; }
  static double Metric(const std::string& series) { return daemon_->Metric(series).value_or(-1); }

  static TemporaryDirectory* folder_;
  static Daemon* daemon_;
  std::unique_ptr<Client> client_;
  std::vector<std::shared_ptr<Gpu>> gpus_;
};

// What processes hold, for tests that nothing is left.
struct Holdings {
  int daemon_descriptors = 0;
  std::vector<int> worker_descriptors = {};
  std::vector<int> worker_mappings = {};
  int own_descriptors = 0;
};
Holdings HoldingsOf(const Daemon& daemon);
// Waits up to ten seconds for what is held to be no more than `before`.
void ExpectNoMoreThan(const Holdings& before, const Daemon& daemon);

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_FAULT_GPU_MEMORY_FIXTURE_H_
