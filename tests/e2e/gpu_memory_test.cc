// SPDX-License-Identifier: Apache-2.0
// Memory of GPUs shared with a real daemon: every kind, its refusals, the order of calls after a client's own work, and
// what is left when a region, a client or a worker goes.
#include "client/client.h"
#include "tests/fault/gpu_memory_fixture.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <dlfcn.h>
#include <functional>
#include <signal.h>
#include <string>

namespace gemmd {
namespace {

using ::testing::HasSubstr;
using testing::kSmall;

const uint64_t kBytes = kSmall.byte_size();

class GpuMemoryTest : public testing::GpuMemoryFixture {
 protected:
  static void SetUpTestSuite() { StartDaemon(); }
  static void TearDownTestSuite() { StopDaemon(); }
};

TEST_F(GpuMemoryTest, AResultAppearsInTheClientsOwnMemory) {
  for (const std::shared_ptr<Gpu>& gpu : gpus_) {
    const auto region = client_->CreateDeviceRegion(gpu, kBytes);
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ(region->device(), gpu->uuid());
    ExpectProduct(*region);
  }
}

TEST_F(GpuMemoryTest, AResultAppearsInAPool) {
  for (const std::shared_ptr<Gpu>& gpu : gpus_) {
    const auto region = client_->CreatePool(kBytes, gpu->uuid());
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ(region->device(), gpu->uuid());
    ExpectProduct(*region);
  }
}

TEST_F(GpuMemoryTest, APoolBeginsWithZeros) {
  const auto region = client_->CreatePool(kBytes);
  ASSERT_TRUE(region.ok()) << region.status();
  std::vector<std::byte> bytes(kBytes, std::byte{1});
  ASSERT_TRUE(region->Read(0, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), std::byte{0}), static_cast<ptrdiff_t>(kBytes));
}

TEST_F(GpuMemoryTest, AResultAppearsInPartOfAnAllocationOfCudaMalloc) {
  const auto allocation = gpus_.back()->AllocateLegacy(2 * kGpuGranule);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  for (const uint64_t offset : {uint64_t{0}, kGpuGranule + 512}) {
    const auto region =
        client_->ShareDeviceMemory(gpus_.back(), static_cast<std::byte*>(allocation->data()) + offset, kBytes);
    ASSERT_TRUE(region.ok()) << region.status();
    ExpectProduct(*region);
  }
}

// The fake driver counts waits; on a real one, wrong order gives a wrong product (gpu_order_test.cc).
TEST_F(GpuMemoryTest, ACallWaitsForTheGpusOfItsOperandsOnly) {
  if (testing::OnRealGpu()) GTEST_SKIP() << "needs the fake driver";
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(driver, nullptr);
  const auto waits = reinterpret_cast<int (*)(int)>(dlsym(driver, "FakeCudaWaits"));
  ASSERT_NE(waits, nullptr);
  const auto region = client_->CreateDeviceRegion(gpus_[1], kBytes);
  const auto host = client_->CreateHostRegion(kBytes);
  ASSERT_TRUE(region.ok() && host.ok());
  const v1::RunRequest request = ToRequest(kSmall.Call(*region, *region));
  const auto expect = [&](int on_0, int on_1, const std::function<void()>& act) {
    const int before_0 = waits(0);
    const int before_1 = waits(1);
    act();
    EXPECT_EQ(waits(0) - before_0, on_0);
    EXPECT_EQ(waits(1) - before_1, on_1);
  };
  expect(0, 1, [&] { EXPECT_TRUE(client_->Run(request).ok()); });
  const auto pool = client_->CreatePool(kBytes, gpu(1));
  ASSERT_TRUE(pool.ok()) << pool.status();
  expect(0, 1, [&] { EXPECT_TRUE(client_->Dense(kSmall.Call(*region, *pool)).ok()); });
  expect(0, 1, [&] {
    absl::Notification done;
    client_->RunAsync(request, {}, [&](const absl::StatusOr<v1::RunResponse>&) { done.Notify(); });
    done.WaitForNotification();
  });
  expect(0, 1, [&] {
    const auto stream = client_->OpenStream();
    EXPECT_TRUE(stream->Submit(request, [](const absl::StatusOr<v1::RunResponse>&) {}).ok());
    EXPECT_TRUE(stream->Close().ok());
  });
  expect(0, 1, [&] {
    EXPECT_TRUE(client_->CreateTensor({}, {.data = region->View(0, DType::kE4m3, {32, 128})}).ok());
  });
  expect(0, 0, [&] {
    v1::RunRequest on_host = request;
    for (v1::TensorRef* const ref : {on_host.mutable_dense()->mutable_a(), on_host.mutable_dense()->mutable_sfa(),
                                     on_host.mutable_dense()->mutable_b(), on_host.mutable_dense()->mutable_sfb(),
                                     on_host.mutable_dense()->mutable_d()}) {
      ref->mutable_slice()->set_region_id(host->id());
    }
    EXPECT_TRUE(client_->Run(on_host).ok());
  });
  const auto trusting = Client::Connect(daemon_->address(), {.synchronize = false});
  ASSERT_TRUE(trusting.ok()) << trusting.status();
  const auto own = (*trusting)->CreateDeviceRegion(gpus_[1], kBytes);
  ASSERT_TRUE(own.ok()) << own.status();
  expect(0, 0, [&] { EXPECT_TRUE((*trusting)->Dense(kSmall.Call(*own, *own)).ok()); });
}

TEST_F(GpuMemoryTest, OperandsOnTwoGpusAreRefused) {
  if (!HasGpus(2)) GTEST_SKIP() << "needs two GPUs";
  const auto here = client_->CreateDeviceRegion(gpus_[0], kBytes);
  const auto there = client_->CreatePool(kBytes, gpus_.back()->uuid());
  ASSERT_TRUE(here.ok() && there.ok());
  const absl::Status status = client_->Dense(kSmall.Call(*here, *there)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), HasSubstr("d: expected memory on the same device"));
}

TEST_F(GpuMemoryTest, MemoryLentForReadingIsNotWritten) {
  const auto region = client_->CreateDeviceRegion(gpus_[0], kBytes, Access::kReadOnly);
  ASSERT_TRUE(region.ok()) << region.status();
  const absl::Status status = client_->Dense(kSmall.Call(*region, *region)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST_F(GpuMemoryTest, AGpuThatTheDaemonDoesNotServeIsRefused) {
  const absl::Status status = client_->CreatePool(kBytes, "GPU-elsewhere").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("GPU-elsewhere"));
  EXPECT_EQ(Gpu::Open("GPU-elsewhere").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GpuMemoryTest, SmallAllocationsOfCudaMallocAreRefusedWithTheCure) {
  const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule / 2);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  const absl::Status status = client_->ShareDeviceMemory(gpus_[0], allocation->data(), kBytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("Allocate 2 MiB or more"));
}

TEST_F(GpuMemoryTest, MemoryWithoutALegacyHandleIsRefusedWithTheCure) {
  const auto allocation = gpus_[0]->Allocate(kBytes);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  const absl::Status status = client_->ShareDeviceMemory(gpus_[0], allocation->data(), kBytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), HasSubstr("or a pool of gemmd"));
}

TEST_F(GpuMemoryTest, OtherMemoryIsRefusedByTheClient) {
  std::byte host[64];
  EXPECT_EQ(client_->ShareDeviceMemory(gpus_[0], host, sizeof(host)).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto allocation = gpus_[0]->AllocateLegacy(2 * kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  if (HasGpus(2)) {
    EXPECT_EQ(client_->ShareDeviceMemory(gpus_[1], allocation->data(), kBytes).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(client_->ShareDeviceMemory(gpus_[0], allocation->data(), 2 * kGpuGranule + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(GpuMemoryTest, MemoryOfAClientThatGoesIsGivenBack) {
  const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  const double reaped = Metric("gemmd_regions_reaped_total");
  {
    const std::shared_ptr<ClientSession> session = Broker();
    ASSERT_NE(session, nullptr);
    ASSERT_TRUE(session->CreatePool(kBytes, "").ok());
    const auto ipc = gpus_[0]->Describe(allocation->data(), kBytes);
    ASSERT_TRUE(ipc.ok()) << ipc.status();
    ASSERT_TRUE(session->RegisterDeviceIpc(*ipc, kBytes, Access::kReadWrite, gpu(0)).ok());
    EXPECT_EQ(Metric("gemmd_regions{kind=\"pool\"}"), 1);
  }
  EXPECT_TRUE(testing::WaitUntil(absl::Seconds(10), [&] {
    return Metric("gemmd_regions{kind=\"pool\"}") == 0 && Metric("gemmd_regions{kind=\"device_ipc\"}") == 0;
  }));
  EXPECT_EQ(Metric("gemmd_regions_reaped_total"), reaped + 2);
}

TEST_F(GpuMemoryTest, MemoryOutlivesItsWorker) {
  const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  const auto device = client_->CreateDeviceRegion(gpus_[0], kBytes);
  const auto pool = client_->CreatePool(kBytes, gpu(0));
  const auto ipc = client_->ShareDeviceMemory(gpus_[0], allocation->data(), kBytes);
  ASSERT_TRUE(device.ok() && pool.ok() && ipc.ok());
  ASSERT_TRUE(kSmall.WriteOperands(*pool).ok());
  std::vector<std::byte> operands(kSmall.d());
  ASSERT_TRUE(pool->Read(0, absl::MakeSpan(operands)).ok());
  for (const pid_t pid : daemon_->WorkerPids()) kill(pid, SIGKILL);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] {
    return client_->Dense(kSmall.Call(*pool, *pool)).ok() && client_->CreatePool(kBytes, gpu(gpus_.size() - 1)).ok();
  }));
  std::vector<std::byte> bytes(operands.size());
  ASSERT_TRUE(pool->Read(0, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(bytes, operands);
  for (const DeviceRegion* region : {&*device, &*pool, &*ipc}) ExpectProduct(*region);
}

TEST_F(GpuMemoryTest, ATensorIsWrittenFromGpuMemoryOnItsDevice) {
  const auto region = client_->CreatePool(kBytes, gpu(gpus_.size() - 1));
  ASSERT_TRUE(region.ok()) << region.status();
  const std::vector<std::byte> content(4096, std::byte{9});
  ASSERT_TRUE(region->Write(kSmall.b(), content).ok());
  const auto tensor = client_->CreateTensor({}, {.data = region->View(kSmall.b(), DType::kE4m3, {32, 128})});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->device(), gpu(gpus_.size() - 1));
  const auto bytes = client_->ReadTensor(tensor->id());
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, std::string(content.size(), 9));
}

}  // namespace
}  // namespace gemmd
