// SPDX-License-Identifier: Apache-2.0
// Memory of GPUs shared with a real daemon, on the fake CUDA driver and fake workers: every kind, its refusals, and
// what is left when a region, a client or a worker goes. What a real driver does is tested on a GPU.
#include "client/client.h"
#include "tests/fault/fault_fixture.h"
#include "tests/gpu/fake_cuda.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fcntl.h>
#include <filesystem>
#include <signal.h>
#include <string>
#include <sys/socket.h>

namespace gemmd {
namespace {

using ::testing::HasSubstr;
using testing::kFakeGpus;

constexpr int64_t kM = 32, kN = 64, kK = 128;
// Offsets in a region, in bytes.
constexpr uint64_t kA = 0, kB = 8192, kSfa = 16384, kSfb = 20480, kD = 24576, kEnd = kD + kM * kN * 4;
constexpr std::byte kFilled{0x42};  // What the fake worker fills results with.

DenseCall Product(const DeviceRegion& operands, const DeviceRegion& result) {
  return {.a = operands.View(kA, DType::kE4m3, {kM, kK}),
          .sfa = operands.View(kSfa, DType::kF32, {kM, 1}),
          .b = operands.View(kB, DType::kE4m3, {kN, kK}),
          .sfb = operands.View(kSfb, DType::kF32, {1, 1}),
          .d = result.View(kD, DType::kF32, {kM, kN})};
}

int Entries(const std::string& folder) {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

class GpuMemoryTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new testing::TemporaryDirectory;
    const std::string worker = testing::WorkerWithFlags(*folder_, "gemmd-worker-fake", {"--fill=66"});
    auto daemon = testing::Daemon::Start({.flags = {"--workers=gpu", "--worker_binary=" + worker, "--spin_us=300"}});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = daemon->release();
  }
  static void TearDownTestSuite() {
    delete daemon_;
    delete folder_;
  }

  void SetUp() override {
    auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    for (size_t i = 0; i < gpus_.size(); ++i) {
      auto gpu = Gpu::Open(kFakeGpus[i]);
      ASSERT_TRUE(gpu.ok()) << gpu.status();
      gpus_[i] = *std::move(gpu);
    }
  }

  // The fake worker fills D; nothing else in the region may change.
  void ExpectProduct(const DeviceRegion& region) {
    const std::vector<std::byte> zeros(kEnd);
    ASSERT_TRUE(region.Write(0, zeros).ok());
    const auto response = client_->Dense(Product(region, region));
    ASSERT_TRUE(response.ok()) << response.status();
    std::vector<std::byte> bytes(kEnd);
    ASSERT_TRUE(region.Read(0, absl::MakeSpan(bytes)).ok());
    EXPECT_EQ(std::count(bytes.begin(), bytes.begin() + kD, std::byte{0}), static_cast<ptrdiff_t>(kD));
    EXPECT_EQ(std::count(bytes.begin() + kD, bytes.end(), kFilled), static_cast<ptrdiff_t>(kEnd - kD));
  }

  double Metric(const std::string& series) { return daemon_->Metric(series).value_or(-1); }

  static testing::TemporaryDirectory* folder_;
  static testing::Daemon* daemon_;
  std::unique_ptr<Client> client_;
  std::array<std::shared_ptr<Gpu>, 2> gpus_;
};

testing::TemporaryDirectory* GpuMemoryTest::folder_ = nullptr;
testing::Daemon* GpuMemoryTest::daemon_ = nullptr;

TEST_F(GpuMemoryTest, AResultAppearsInTheClientsOwnMemory) {
  for (const std::shared_ptr<Gpu>& gpu : gpus_) {
    const auto region = client_->CreateDeviceRegion(gpu, kEnd);
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ(region->device(), gpu->uuid());
    ExpectProduct(*region);
  }
}

TEST_F(GpuMemoryTest, AResultAppearsInAPool) {
  for (const std::shared_ptr<Gpu>& gpu : gpus_) {
    const auto region = client_->CreatePool(kEnd, gpu->uuid());
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ(region->device(), gpu->uuid());
    ExpectProduct(*region);
  }
}

TEST_F(GpuMemoryTest, APoolBeginsWithZeros) {
  const auto region = client_->CreatePool(kEnd);
  ASSERT_TRUE(region.ok()) << region.status();
  std::vector<std::byte> bytes(kEnd, std::byte{1});
  ASSERT_TRUE(region->Read(0, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), std::byte{0}), static_cast<ptrdiff_t>(kEnd));
}

TEST_F(GpuMemoryTest, AResultAppearsInPartOfAnAllocationOfCudaMalloc) {
  const auto allocation = gpus_[1]->AllocateLegacy(2 * kGpuGranule);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  for (const uint64_t offset : {uint64_t{0}, kGpuGranule + 512}) {
    const auto region =
        client_->ShareDeviceMemory(gpus_[1], static_cast<std::byte*>(allocation->data()) + offset, kEnd);
    ASSERT_TRUE(region.ok()) << region.status();
    ExpectProduct(*region);
  }
}

TEST_F(GpuMemoryTest, OperandsOnTwoGpusAreRefused) {
  const auto here = client_->CreateDeviceRegion(gpus_[0], kEnd);
  const auto there = client_->CreatePool(kEnd, gpus_[1]->uuid());
  ASSERT_TRUE(here.ok() && there.ok());
  const absl::Status status = client_->Dense(Product(*here, *there)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), HasSubstr("d: expected memory on the same device"));
}

TEST_F(GpuMemoryTest, MemoryLentForReadingIsNotWritten) {
  const auto region = client_->CreateDeviceRegion(gpus_[0], kEnd, Access::kReadOnly);
  ASSERT_TRUE(region.ok()) << region.status();
  const absl::Status status = client_->Dense(Product(*region, *region)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST_F(GpuMemoryTest, AGpuThatTheDaemonDoesNotServeIsRefused) {
  const absl::Status status = client_->CreatePool(kEnd, "GPU-elsewhere").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("GPU-elsewhere"));
  EXPECT_EQ(Gpu::Open("GPU-elsewhere").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GpuMemoryTest, SmallAllocationsOfCudaMallocAreRefusedWithTheCure) {
  const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule / 2);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  const absl::Status status = client_->ShareDeviceMemory(gpus_[0], allocation->data(), kEnd).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("Allocate 2 MiB or more"));
}

TEST_F(GpuMemoryTest, MemoryWithoutALegacyHandleIsRefusedWithTheCure) {
  const auto allocation = gpus_[0]->Allocate(kEnd);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  const absl::Status status = client_->ShareDeviceMemory(gpus_[0], allocation->data(), kEnd).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(status.message(), HasSubstr("use a pool of gemmd"));
}

TEST_F(GpuMemoryTest, OtherMemoryIsRefusedByTheClient) {
  std::byte host[64];
  EXPECT_EQ(client_->ShareDeviceMemory(gpus_[0], host, sizeof(host)).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto allocation = gpus_[0]->AllocateLegacy(2 * kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  EXPECT_EQ(client_->ShareDeviceMemory(gpus_[1], allocation->data(), kEnd).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client_->ShareDeviceMemory(gpus_[0], allocation->data(), 2 * kGpuGranule + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(GpuMemoryTest, DescriptorsOfOtherThingsAreRefused) {
  auto session = ClientSession::OpenAtBroker(daemon_->socket_path() + kBrokerSuffix, {});
  ASSERT_TRUE(session.ok()) << session.status();
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
  const UniqueFd ends[2] = {UniqueFd(sockets[0]), UniqueFd(sockets[1])};
  const UniqueFd device(open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd folder(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const auto allocation = gpus_[0]->Allocate(kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  const auto short_memory = allocation->Export();
  ASSERT_TRUE(short_memory.ok());
  const int before = daemon_->OpenDescriptors();
  for (const int fd : {ends[0].get(), device.get(), folder.get()}) {
    EXPECT_EQ((*session)->RegisterDevice(fd, kEnd, Access::kReadWrite, kFakeGpus[0]).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ((*session)
                ->RegisterDevice(short_memory->get(), kGpuGranule + 1, Access::kReadWrite, kFakeGpus[0])
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*session)->RegisterDevice(-1, kEnd, Access::kReadWrite, kFakeGpus[0]).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_LE(daemon_->OpenDescriptors(), before);
}

TEST_F(GpuMemoryTest, AHandleOfFreedMemoryIsRefused) {
  auto session = ClientSession::OpenAtBroker(daemon_->socket_path() + kBrokerSuffix, {});
  ASSERT_TRUE(session.ok()) << session.status();
  IpcMemory ipc;
  {
    const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
    ASSERT_TRUE(allocation.ok());
    ipc = *gpus_[0]->Describe(allocation->data(), kEnd);
  }
  const absl::Status status = (*session)->RegisterDeviceIpc(ipc, kEnd, Access::kReadWrite, kFakeGpus[0]).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("ipc."));
}

TEST_F(GpuMemoryTest, NothingIsLeftAfterManyRegions) {
  const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  const auto once = [&] {
    ASSERT_TRUE(client_->CreateDeviceRegion(gpus_[0], kEnd).ok());
    ASSERT_TRUE(client_->CreatePool(kEnd, kFakeGpus[1]).ok());
    ASSERT_TRUE(client_->ShareDeviceMemory(gpus_[0], allocation->data(), kEnd).ok());
  };
  once();
  const int daemon = daemon_->OpenDescriptors();
  std::vector<int> workers;
  for (const pid_t pid : daemon_->WorkerPids()) workers.push_back(Entries(absl::StrCat("/proc/", pid, "/fd")));
  const int own = Entries("/proc/self/fd");
  for (int i = 0; i < 200; ++i) once();
  EXPECT_LE(daemon_->OpenDescriptors(), daemon);
  EXPECT_LE(Entries("/proc/self/fd"), own);
  const std::vector<pid_t> pids = daemon_->WorkerPids();
  ASSERT_EQ(pids.size(), workers.size());
  for (size_t i = 0; i < pids.size(); ++i) EXPECT_LE(Entries(absl::StrCat("/proc/", pids[i], "/fd")), workers[i]);
  for (const char* const kind : {"device", "device_ipc", "pool"}) {
    EXPECT_EQ(Metric(absl::StrCat("gemmd_region_bytes{kind=\"", kind, "\"}")), 0) << kind;
  }
}

TEST_F(GpuMemoryTest, MemoryOfAClientThatGoesIsGivenBack) {
  const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(allocation.ok());
  const double reaped = Metric("gemmd_regions_reaped_total");
  {
    auto session = ClientSession::OpenAtBroker(daemon_->socket_path() + kBrokerSuffix, {});
    ASSERT_TRUE(session.ok()) << session.status();
    ASSERT_TRUE((*session)->CreatePool(kEnd, "").ok());
    const auto ipc = gpus_[0]->Describe(allocation->data(), kEnd);
    ASSERT_TRUE(ipc.ok()) << ipc.status();
    ASSERT_TRUE((*session)->RegisterDeviceIpc(*ipc, kEnd, Access::kReadWrite, kFakeGpus[0]).ok());
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
  const auto device = client_->CreateDeviceRegion(gpus_[0], kEnd);
  const auto pool = client_->CreatePool(kEnd, kFakeGpus[0]);
  const auto ipc = client_->ShareDeviceMemory(gpus_[0], allocation->data(), kEnd);
  ASSERT_TRUE(device.ok() && pool.ok() && ipc.ok());
  const std::vector<std::byte> mark(64, std::byte{7});
  ASSERT_TRUE(pool->Write(kA, mark).ok());
  for (const pid_t pid : daemon_->WorkerPids()) kill(pid, SIGKILL);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] {
    return client_->Dense(Product(*pool, *pool)).ok() && client_->CreatePool(kEnd, kFakeGpus[1]).ok();
  }));
  std::vector<std::byte> bytes(mark.size());
  ASSERT_TRUE(pool->Read(kA, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(bytes, mark);
  for (const DeviceRegion* region : {&*device, &*pool, &*ipc}) ExpectProduct(*region);
}

TEST_F(GpuMemoryTest, ATensorIsWrittenFromGpuMemoryOnItsDevice) {
  const auto region = client_->CreatePool(kEnd, kFakeGpus[1]);
  ASSERT_TRUE(region.ok()) << region.status();
  const std::vector<std::byte> content(kN * kK, std::byte{9});
  ASSERT_TRUE(region->Write(kB, content).ok());
  const auto tensor = client_->CreateTensor({}, {.data = region->View(kB, DType::kE4m3, {kN, kK})});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->device(), kFakeGpus[1]);
  const auto bytes = client_->ReadTensor(tensor->id());
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, std::string(kN * kK, 9));
}

}  // namespace
}  // namespace gemmd
