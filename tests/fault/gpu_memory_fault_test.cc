// SPDX-License-Identifier: Apache-2.0
// What clients do wrong with memory of a GPU, again and again: descriptors and handles of other things, regions that
// are closed under their jobs, memory that goes under its region. Nobody else notices, and nothing is left.
//
// GEMMD_TEST_LONG=1: as often as an evening allows, instead of seconds.
#include "client/grpc_status.h"
#include "client/operations.h"
#include "client/run_stream.h"
#include "tests/bench/device_memory_meter.h"
#include "tests/fault/gpu_memory_fixture.h"

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <linux/dma-heap.h>
#include <random>
#include <signal.h>
#include <string>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

using ::testing::AnyOf;
using testing::ExpectNoMoreThan;
using ::testing::HasSubstr;
using testing::Holdings;
using testing::HoldingsOf;
using testing::kSmall;

const uint64_t kBytes = kSmall.byte_size();

int Times(int usually, int at_length) { return std::getenv("GEMMD_TEST_LONG") == nullptr ? usually : at_length; }

class GpuMemoryFaultTest : public testing::GpuMemoryFixture {
 protected:
  // Jobs take a while, so that some are in flight when something happens.
  static void SetUpTestSuite() { StartDaemon({"--delay_us=100"}); }
  static void TearDownTestSuite() { StopDaemon(); }

  void SetUp() override {
    GpuMemoryFixture::SetUp();
    session_ = Broker();
    ASSERT_NE(session_, nullptr);
    workers_ = daemon_->WorkerPids();
  }

  // Memory of cudaMalloc, kept until the end of the test.
  absl::StatusOr<IpcMemory> DescribeLegacy() {
    auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
    if (!allocation.ok()) return allocation.status();
    legacy_.push_back(*std::move(allocation));
    return gpus_[0]->Describe(legacy_.back().data(), kBytes);
  }

  absl::StatusOr<DeviceRegion> MakeRegion(const std::string& kind, uint64_t byte_size) {
    if (kind == "pool") return client_->CreatePool(byte_size, gpu());
    if (kind == "device") return client_->CreateDeviceRegion(gpus_[0], byte_size);
    auto allocation = gpus_[0]->AllocateLegacy(std::max(byte_size, kGpuGranule));
    if (!allocation.ok()) return allocation.status();
    auto region = client_->ShareDeviceMemory(gpus_[0], allocation->data(), byte_size);
    legacy_.push_back(*std::move(allocation));
    return region;
  }

  // A pool of another session than the client's.
  DeviceRegion InSession(const CreatedPool& pool) {
    auto allocation = gpus_[0]->Import(pool.fd, kBytes);
    EXPECT_TRUE(allocation.ok()) << allocation.status();
    DeviceRegion::Memory memory;
    if (allocation.ok()) memory.allocation = *std::move(allocation);
    return DeviceRegion(pool.region_id, kBytes, std::move(memory), nullptr);
  }

  absl::Status RunIn(const ClientSession& session, const v1::RunRequest& request) const {
    const auto stub = v1::Gemm::NewStub(client_->channel());
    grpc::ClientContext context;
    session.Authorize(&context);
    v1::RunResponse response;
    return FromGrpc(stub->Run(&context, request, &response));
  }

  // Everybody else is served as before, by the same workers.
  void ExpectNobodyNoticed() {
    EXPECT_EQ(daemon_->WorkerPids(), workers_);
    const auto region = client_->CreateDeviceRegion(gpus_[0], kBytes);
    ASSERT_TRUE(region.ok()) << region.status();
    ExpectProduct(*region);
  }

  std::shared_ptr<ClientSession> session_;  // Beside the client's, for registrations that it would not make.
  std::vector<pid_t> workers_;              // As they were at the start.
  std::vector<GpuAllocation> legacy_;       // Freed after the regions.
};

// The command, on the CUDA driver that this program has.
std::vector<std::string> OnThisDriver(std::vector<std::string> command) {
  if (!testing::OnRealGpu()) {
    command.insert(command.begin(),
                   {"/usr/bin/env", "LD_LIBRARY_PATH=" + testing::BinaryDirectory() + "/../tests/fake_cuda"});
  }
  return command;
}

// Descriptors that are no memory of a GPU, by name.
std::vector<std::pair<std::string, UniqueFd>> OtherDescriptors() {
  std::vector<std::pair<std::string, UniqueFd>> descriptors;
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0) {
    descriptors.emplace_back("socket", UniqueFd(sockets[0]));
    descriptors.emplace_back("other end of the socket", UniqueFd(sockets[1]));
  }
  descriptors.emplace_back("/dev/null", UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC)));
  descriptors.emplace_back("folder", UniqueFd(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC)));
  descriptors.emplace_back("eventfd", UniqueFd(eventfd(0, EFD_CLOEXEC)));
  // Memory of the fake driver is memfds.
  if (testing::OnRealGpu()) {
    descriptors.emplace_back("memfd", UniqueFd(memfd_create("other", MFD_CLOEXEC)));
    if (ftruncate(descriptors.back().second.get(), static_cast<off_t>(kGpuGranule)) != 0) descriptors.pop_back();
  }
  // Where this machine gives one.
  const UniqueFd heap(open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC));
  dma_heap_allocation_data dma_buf = {};
  dma_buf.len = kGpuGranule;
  dma_buf.fd_flags = O_RDWR | O_CLOEXEC;
  if (heap.valid() && ioctl(heap.get(), DMA_HEAP_IOCTL_ALLOC, &dma_buf) == 0) {
    descriptors.emplace_back("dma-buf", UniqueFd(static_cast<int>(dma_buf.fd)));
  }
  return descriptors;
}

// Every registration that must fail, once.
void FailInEveryWay(ClientSession& session, const std::shared_ptr<Gpu>& gpu, const GpuAllocation& device,
                    const GpuAllocation& legacy, const IpcMemory& freed) {
  const auto refused = [](const auto& result, const std::string& what) {
    EXPECT_THAT(result.status().code(), AnyOf(absl::StatusCode::kInvalidArgument, absl::StatusCode::kFailedPrecondition,
                                              absl::StatusCode::kOutOfRange, absl::StatusCode::kResourceExhausted))
        << what << ": " << result.status();
  };
  for (const auto& [name, fd] : OtherDescriptors()) {
    refused(session.RegisterDevice(fd.get(), kBytes, Access::kReadWrite, gpu->uuid()), name);
  }
  refused(session.RegisterDevice(-1, kBytes, Access::kReadWrite, gpu->uuid()), "no descriptor");
  const auto fd = device.Export();
  ASSERT_TRUE(fd.ok()) << fd.status();
  refused(session.RegisterDevice(fd->get(), kGpuGranule + 1, Access::kReadWrite, gpu->uuid()), "too short");
  refused(session.RegisterDevice(fd->get(), 0, Access::kReadWrite, gpu->uuid()), "no bytes");
  refused(session.RegisterDevice(fd->get(), kBytes, Access::kReadWrite, "GPU-elsewhere"), "another GPU");
  refused(session.RegisterDevice(fd->get(), kBytes, Access::kReadWrite, ""), "no GPU");
  refused(session.RegisterDeviceIpc(freed, kBytes, Access::kReadWrite, gpu->uuid()), "freed");
  const auto described = gpu->Describe(legacy.data(), kBytes);
  ASSERT_TRUE(described.ok()) << described.status();
  IpcMemory ipc;
  ipc.allocation_bytes = described->allocation_bytes;
  refused(session.RegisterDeviceIpc(ipc, kBytes, Access::kReadWrite, gpu->uuid()), "zeros for a handle");
  const auto change = [&](const std::string& what, const std::function<void(IpcMemory&)>& changed) {
    ipc = *described;
    changed(ipc);
    refused(session.RegisterDeviceIpc(ipc, kBytes, Access::kReadWrite, gpu->uuid()), what);
  };
  change("a longer allocation", [](IpcMemory& i) { i.allocation_bytes += kGpuGranule; });
  change("a small allocation", [](IpcMemory& i) { i.allocation_bytes = kGpuGranule / 2; });
  change("beyond the end", [](IpcMemory& i) { i.offset = i.allocation_bytes - 16; });
  change("far beyond the end", [](IpcMemory& i) { i.offset = UINT64_MAX - 4096; });
  change("misaligned", [](IpcMemory& i) { i.offset = 1; });
  change("reserved bits", [](IpcMemory& i) { i.reserved = 1; });
  refused(session.RegisterDeviceIpc(*described, kBytes, Access::kReadWrite, "GPU-elsewhere"), "another GPU");
  refused(session.CreatePool(uint64_t{1} << 50, gpu->uuid()), "a pool that is too large");
  refused(session.CreatePool(0, gpu->uuid()), "a pool of nothing");
  refused(session.CreatePool(kBytes, "GPU-elsewhere"), "a pool elsewhere");
}

TEST_F(GpuMemoryFaultTest, EveryWayToRegisterLeavesNothing) {
  const auto device = gpus_[0]->Allocate(kGpuGranule);
  const auto legacy = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(device.ok() && legacy.ok());
  IpcMemory freed;
  {
    const auto allocation = gpus_[0]->AllocateLegacy(kGpuGranule);
    ASSERT_TRUE(allocation.ok());
    freed = *gpus_[0]->Describe(allocation->data(), kBytes);
  }
  const auto once = [&] {
    FailInEveryWay(*session_, gpus_[0], *device, *legacy, freed);
    for (const char* const kind : {"pool", "device"}) EXPECT_TRUE(MakeRegion(kind, kBytes).ok()) << kind;
    EXPECT_TRUE(client_->ShareDeviceMemory(gpus_[0], legacy->data(), kBytes).ok());
  };
  once();
  const Holdings before = HoldingsOf(*daemon_);
  for (int i = 0; i < Times(30, 1000); ++i) once();
  ExpectNoMoreThan(before, *daemon_);
  for (const char* const kind : {"device", "device_ipc", "pool"}) {
    EXPECT_EQ(Metric(absl::StrCat("gemmd_region_bytes{kind=\"", kind, "\"}")), 0) << kind;
  }
  ExpectNobodyNoticed();
}

TEST_F(GpuMemoryFaultTest, ADescriptorMayBeRegisteredTwiceAndClosedAtOnce) {
  const auto device = gpus_[0]->Allocate(kGpuGranule);
  ASSERT_TRUE(device.ok());
  auto fd = device->Export();
  ASSERT_TRUE(fd.ok());
  const auto first = session_->RegisterDevice(fd->get(), kBytes, Access::kReadWrite, gpu());
  const auto second = session_->RegisterDevice(fd->get(), kBytes, Access::kReadWrite, gpu());
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_NE(*first, *second);
  const int number = fd->get();
  fd->Reset();
  EXPECT_FALSE(session_->RegisterDevice(number, kBytes, Access::kReadWrite, gpu()).ok());
  const auto legacy = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(legacy.ok());
  auto one = client_->ShareDeviceMemory(gpus_[0], legacy->data(), kBytes);
  const auto other = client_->ShareDeviceMemory(gpus_[0], legacy->data(), kBytes);
  ASSERT_TRUE(one.ok() && other.ok()) << one.status() << other.status();
  one = DeviceRegion();
  ExpectProduct(*other);
}

// One kind: regions that are closed, and whose memory goes, under 64 jobs.
struct Answers {
  absl::Mutex mutex;
  int left = 0;
  int done = 0;
  int refused = 0;
  std::string wrong;
};

class ClosingUnderJobsTest : public GpuMemoryFaultTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(ClosingUnderJobsTest, AllAreAnsweredAndNewUseIsRefusedAtOnce) {
  constexpr int kJobs = 64;  // Each with a result of its own.
  testing::ProductOfOnes product;
  if (testing::OnRealGpu()) product = {.m = 2048, .n = 2048, .k = 2048};  // 15 us each, so that they queue up.
  const auto result = client_->CreatePool(product.byte_size() + kJobs * product.d_bytes(), gpu());
  ASSERT_TRUE(result.ok()) << result.status();
  Holdings before;
  int done = 0;
  for (int round = 0; round < Times(50, 334); ++round) {
    legacy_.clear();
    absl::StatusOr<DeviceRegion> region = MakeRegion(GetParam(), product.byte_size());
    ASSERT_TRUE(region.ok()) << region.status();
    ASSERT_TRUE(product.WriteOperands(*region).ok());
    v1::RunRequest request = ToRequest(product.Call(*region, *result));
    const std::unique_ptr<RunStream> stream = client_->OpenStream();
    Answers answers;
    answers.left = kJobs;
    for (uint64_t i = 0; i < kJobs; ++i) {
      request.mutable_dense()->mutable_d()->mutable_slice()->set_offset(product.d() + i * product.d_bytes());
      ASSERT_TRUE(stream
                      ->Submit(request,
                               [&](const absl::StatusOr<v1::RunResponse>& response) {
                                 const absl::MutexLock lock(&answers.mutex);
                                 --answers.left;
                                 if (response.ok()) {
                                   ++answers.done;
                                 } else if (absl::StrContains(response.status().message(), "region")) {
                                   ++answers.refused;
                                 } else {
                                   answers.wrong = response.status().ToString();
                                 }
                               })
                      .ok());
    }
    {  // One is answered: others are on their way.
      const absl::MutexLock lock(&answers.mutex);
      answers.mutex.Await(absl::Condition(
          +[](Answers* a) { return a->left < kJobs; }, &answers));
    }
    region = DeviceRegion();
    const absl::Time closed = absl::Now();
    const absl::Status refusal = client_->Run(request).status();
    EXPECT_THAT(refusal.message(), HasSubstr("region")) << refusal;
    EXPECT_LT(absl::Now() - closed, testing::kAllowed);
    EXPECT_TRUE(stream->Close().ok());
    const absl::MutexLock lock(&answers.mutex);
    EXPECT_EQ(answers.left, 0);
    EXPECT_EQ(answers.wrong, "");
    done += answers.done;
    if (round == 0) before = HoldingsOf(*daemon_);
  }
  EXPECT_GT(done, 0);
  legacy_.clear();
  EXPECT_TRUE(product.IsIn(*result));
  EXPECT_TRUE(testing::WaitUntil(absl::Seconds(10), [&] {
    return Metric(absl::StrCat("gemmd_regions{kind=\"", GetParam(), "\"}")) ==
           (std::strcmp(GetParam(), "pool") == 0 ? 1 : 0);
  }));
  ExpectNoMoreThan(before, *daemon_);
  ExpectNobodyNoticed();
}

INSTANTIATE_TEST_SUITE_P(Kinds, ClosingUnderJobsTest, ::testing::Values("pool", "device", "device_ipc"),
                         [](const auto& test) { return std::string(test.param); });

// What the death of a client may leave in use: nothing, but others' memory moves by a granule.
constexpr int64_t kSlackBytes = int64_t{2} << 20;

TEST_P(ClosingUnderJobsTest, ADeadClientsMemoryIsBackWithinASecondThoughItsProductsRun) {
  // One second is the promise; machines that test with fakes are loaded.
  const absl::Duration reaped = absl::Seconds(testing::OnRealGpu() ? 1 : 10);
  const char* const mebibytes = testing::OnRealGpu() ? "512" : "8";
  const auto meter = DeviceMemoryMeter::Open(gpu());
  ASSERT_TRUE(meter.ok()) << meter.status();
  const std::string regions = absl::StrCat("gemmd_regions{kind=\"", GetParam(), "\"}");
  int64_t before = 0;
  // The first leaves what kernels keep.
  for (int i = 0; i <= Times(2, 20); ++i) {
    auto client =
        testing::ChildProcess::Start(OnThisDriver({testing::BinaryDirectory() + "/gemmd-doomed-client",
                                                   daemon_->address(), absl::StrCat("busy_", GetParam()), mebibytes}));
    ASSERT_TRUE(client.ok()) << client.status();
    const auto line = (*client)->ReadLine(absl::Seconds(60));
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_EQ(Metric(regions), 1);
    (*client)->Signal(SIGKILL);
    ASSERT_TRUE((*client)->WaitForExit(absl::Seconds(30)).ok());
    EXPECT_TRUE(testing::WaitUntil(reaped, [&] {
      return Metric(regions) == 0 &&
             (!testing::OnRealGpu() || i == 0 || (*meter)->UsedBytes().value_or(INT64_MAX) <= before + kSlackBytes);
    })) << i;
    if (i == 0) before = *(*meter)->UsedBytes();
  }
  ExpectNobodyNoticed();
}

TEST_F(GpuMemoryFaultTest, RandomHandlesAreRefused) {
  std::mt19937_64 random(1);
  IpcMemory ipc;
  ipc.allocation_bytes = kGpuGranule;
  for (int i = 0; i < Times(2000, 100'000); ++i) {
    for (uint8_t& byte : ipc.handle) byte = static_cast<uint8_t>(random());
    const auto region = session_->RegisterDeviceIpc(ipc, kBytes, Access::kReadWrite, gpu());
    ASSERT_EQ(region.status().code(), absl::StatusCode::kInvalidArgument) << region.status();
  }
  ExpectNobodyNoticed();
}

// CUDA does not look at all of a handle: some of these are still the memory.
TEST_F(GpuMemoryFaultTest, HandlesWithAWrongByteDoNoHarm) {
  const absl::StatusOr<IpcMemory> described = DescribeLegacy();
  ASSERT_TRUE(described.ok()) << described.status();
  const Holdings before = HoldingsOf(*daemon_);
  int taken = 0;
  for (size_t i = 0; i < sizeof(described->handle); ++i) {
    for (int flip = 1; flip < 256; flip += Times(51, 1)) {
      IpcMemory ipc = *described;
      ipc.handle[i] = static_cast<uint8_t>(ipc.handle[i] ^ flip);
      const auto region = session_->RegisterDeviceIpc(ipc, kBytes, Access::kReadWrite, gpu());
      if (region.ok()) {
        ++taken;
        EXPECT_TRUE(session_->CloseRegion(*region).ok());
      } else {
        EXPECT_EQ(region.status().code(), absl::StatusCode::kInvalidArgument) << region.status();
      }
    }
  }
  RecordProperty("taken", taken);
  ExpectNoMoreThan(before, *daemon_);
  ExpectNobodyNoticed();
}

// CUDA would take the memory for the worker's own.
TEST_F(GpuMemoryFaultTest, MemoryOfAProcessWithTheWorkersNumberElsewhereIsRefusedWithTheCure) {
  const absl::StatusOr<IpcMemory> described = DescribeLegacy();
  ASSERT_TRUE(described.ok()) << described.status();
  for (const pid_t worker : workers_) {
    IpcMemory ipc = *described;
    ipc.pid = worker;
    ipc.pid_namespace = described->pid_namespace + 1;
    absl::Status status;
    for (const std::shared_ptr<Gpu>& on : gpus_) {
      status.Update(session_->RegisterDeviceIpc(ipc, kBytes, Access::kReadWrite, on->uuid()).status());
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(status.message(), HasSubstr("in different PID namespaces"));
    EXPECT_THAT(status.message(), HasSubstr("use a pool"));
  }
  ExpectNobodyNoticed();
}

// The process that has the memory is not the client, and ends before the client's first call.
TEST_F(GpuMemoryFaultTest, MemoryOfAProcessThatEndedIsThereAsLongAsItsRegion) {
  const absl::StatusOr<CreatedPool> pool = session_->CreatePool(kBytes, gpu());
  ASSERT_TRUE(pool.ok()) << pool.status();
  const DeviceRegion result = InSession(*pool);
  ASSERT_TRUE(kSmall.WriteOperands(result).ok());
  // The owner's memory holds the same operands.
  std::string operands(kSmall.d(), '\0');
  ASSERT_TRUE(result.Read(0, absl::MakeSpan(reinterpret_cast<std::byte*>(operands.data()), operands.size())).ok());
  const std::string file = folder_->path() + "/operands";
  std::ofstream(file) << operands;

  auto owner = testing::ChildProcess::Start(
      OnThisDriver({testing::BinaryDirectory() + "/gemmd-doomed-client", daemon_->address(), "exporter", file}));
  ASSERT_TRUE(owner.ok()) << owner.status();
  const auto line = (*owner)->ReadLine(absl::Seconds(60));
  ASSERT_TRUE(line.ok()) << line.status();
  const std::string bytes = absl::HexStringToBytes(*line);
  IpcMemory ipc;
  ASSERT_EQ(bytes.size(), sizeof(ipc)) << *line;
  std::memcpy(&ipc, bytes.data(), sizeof(ipc));
  const auto id = session_->RegisterDeviceIpc(ipc, operands.size(), Access::kReadWrite, gpu());
  ASSERT_TRUE(id.ok()) << id.status();
  (*owner)->Signal(SIGKILL);
  ASSERT_TRUE((*owner)->WaitForExit(absl::Seconds(30)).ok());

  const DeviceRegion owned(*id, operands.size(), {}, nullptr);
  const absl::Status status = RunIn(*session_, ToRequest(kSmall.Call(owned, result)));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(kSmall.IsIn(result));
  EXPECT_TRUE(session_->CloseRegion(*id).ok());
  EXPECT_FALSE(session_->RegisterDeviceIpc(ipc, operands.size(), Access::kReadWrite, gpu()).ok());
  ExpectNobodyNoticed();
}

// Undefined by CUDA's documentation: the product may be right or fail. Others go on, by a new worker if need be.
TEST_F(GpuMemoryFaultTest, MemoryThatIsFreedUnderItsRegionHarmsNobodyElse) {
  for (int i = 0; i < Times(5, 100); ++i) {
    auto legacy = gpus_[0]->AllocateLegacy(kGpuGranule);
    ASSERT_TRUE(legacy.ok());
    const auto region = client_->ShareDeviceMemory(gpus_[0], legacy->data(), kBytes);
    const auto result = client_->CreatePool(kBytes, gpu());
    ASSERT_TRUE(region.ok() && result.ok()) << region.status() << result.status();
    ASSERT_TRUE(kSmall.WriteOperands(*region).ok());
    const v1::RunRequest request = ToRequest(kSmall.Call(*region, *result));
    *legacy = GpuAllocation();
    client_->Run(request).IgnoreError();
  }
  EXPECT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] {
    const auto pool = client_->CreatePool(kBytes, gpu());
    return pool.ok() && kSmall.WriteOperands(*pool).ok() && client_->Dense(kSmall.Call(*pool, *pool)).ok() &&
           kSmall.IsIn(*pool);
  }));
}

TEST_F(GpuMemoryFaultTest, MemoryThatASuccessorCannotOpenIsRefusedAndTheRestIsServed) {
  auto legacy = gpus_[0]->AllocateLegacy(kGpuGranule);
  ASSERT_TRUE(legacy.ok());
  const auto gone = client_->ShareDeviceMemory(gpus_[0], legacy->data(), kBytes);
  const auto kept = client_->CreatePool(kBytes, gpu());
  ASSERT_TRUE(gone.ok() && kept.ok()) << gone.status() << kept.status();
  const v1::RunRequest request = ToRequest(kSmall.Call(*gone, *kept));
  *legacy = GpuAllocation();
  for (const pid_t pid : daemon_->WorkerPids()) kill(pid, SIGKILL);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(30), [&] { return client_->Dense(kSmall.Call(*kept, *kept)).ok(); }));
  const absl::Status status = client_->Run(request).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr("region"));
  ExpectProduct(*kept);
}

}  // namespace
}  // namespace gemmd
