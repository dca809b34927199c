// SPDX-License-Identifier: Apache-2.0
// A call comes after what the client has started on its GPU, without a word from it. Needs a GPU, which works while the
// program goes on.
#include "client/client.h"
#include "tests/fault/gpu_memory_fixture.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace gemmd {
namespace {

using testing::kSmall;

class GpuOrderTest : public testing::GpuMemoryFixture {
 protected:
  static void SetUpTestSuite() {
    if (testing::OnRealGpu()) StartDaemon();
  }
  static void TearDownTestSuite() { StopDaemon(); }

  void SetUp() override {
    if (!testing::OnRealGpu()) GTEST_SKIP() << "needs a GPU: GEMMD_TEST_WORKERS=gpu:0";
    GpuMemoryFixture::SetUp();
  }
};

TEST_F(GpuOrderTest, AProductComesAfterTheClientsOwnWork) {
  constexpr uint64_t kScratchBytes = uint64_t{1} << 30;
  const auto driver = CudaDriver::Load();
  const auto region = client_->CreateDeviceRegion(gpus_[0], kSmall.byte_size());
  const auto scratch = gpus_[0]->Allocate(kScratchBytes);
  ASSERT_TRUE(driver.ok() && region.ok() && scratch.ok());
  int device = 0;
  cuda::Context context = nullptr;
  ASSERT_EQ((*driver)->device_get(&device, 0), cuda::kSuccess);
  ASSERT_EQ((*driver)->primary_context_retain(&context, device), cuda::kSuccess);
  ASSERT_EQ((*driver)->context_push(context), cuda::kSuccess);
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(kSmall.WriteOperands(*region).ok());
    const auto a = static_cast<cuda::Address>(reinterpret_cast<uintptr_t>(region->data()));
    // A becomes zeros, and after some 10 ms ones again; the driver returns at once.
    ASSERT_EQ((*driver)->set_bytes(a, 0, kSmall.b()), cuda::kSuccess);
    for (int i = 0; i < 20; ++i) {
      const auto address = static_cast<cuda::Address>(reinterpret_cast<uintptr_t>(scratch->data()));
      ASSERT_EQ((*driver)->set_bytes(address, static_cast<unsigned char>(i), kScratchBytes), cuda::kSuccess);
    }
    ASSERT_EQ((*driver)->set_bytes(a, 0x38, kSmall.b()), cuda::kSuccess);
    const auto response = client_->Dense(kSmall.Call(*region, *region));
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_TRUE(kSmall.IsIn(*region)) << round;
  }
  (*driver)->context_pop(&context);
  (*driver)->primary_context_release(device);
}

}  // namespace
}  // namespace gemmd
