// SPDX-License-Identifier: Apache-2.0
#include "server/region_registry.h"

#include "tests/server/service_fixture.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

constexpr Identity kAlice{.remote = false, .uid = 1001};
constexpr RegionExtent kPage{.byte_size = 4096, .writable = true};

Identity Me() { return Identity{.remote = false, .uid = geteuid()}; }

class RegionRegistryTest : public testing::Test {
 protected:
  absl::Status RegisterStatus(const RegionExtent& extent, UniqueFd fd) {
    return RegisterHost(*state_.regions, session_, extent, std::move(fd)).status();
  }

  FrontEndState state_{Quotas{.regions_per_session = 4, .regions_per_uid = 6, .region_bytes_per_session = 1 << 20}};
  std::shared_ptr<Session> session_ = *state_.sessions.Open(kAlice, "");
  std::shared_ptr<Session> other_ = *state_.sessions.Open(kAlice, "");
};

TEST_F(RegionRegistryTest, RegisteredRegionIsFoundByItsSession) {
  const auto id = RegisterHost(*state_.regions, session_, kPage, SealedMemory(4096));
  ASSERT_TRUE(id.ok()) << id.status();
  const auto view = state_.regions->Find(*session_, *id);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->byte_size, 4096u);
  EXPECT_TRUE(view->writable);
  EXPECT_EQ(state_.regions->List(*session_).size(), 1u);
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kHost).bytes, 4096u);
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kHost).registrations_total[0], 1u);
}

TEST_F(RegionRegistryTest, ForeignAndUnknownGetTheSameRefusal) {
  const auto id = RegisterHost(*state_.regions, session_, kPage, SealedMemory(4096));
  ASSERT_TRUE(id.ok());
  const absl::Status foreign = state_.regions->Find(*other_, *id).status();
  EXPECT_EQ(foreign.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(foreign, state_.regions->Find(*other_, 987654).status());
  EXPECT_EQ(foreign, CloseRegion(*state_.regions, *other_, *id));
  EXPECT_TRUE(state_.regions->List(*other_).empty());
  EXPECT_TRUE(state_.regions->Find(*session_, *id).ok());
}

TEST_F(RegionRegistryTest, ClosingRegionIsFailedPreconditionThenNotFound) {
  const auto id = RegisterHost(*state_.regions, session_, kPage, SealedMemory(4096));
  state_.pool.Pause();
  absl::Status closed = absl::UnknownError("not yet");
  state_.regions->Close(*session_, *id, [&](const absl::Status& status) { closed = status; });
  EXPECT_TRUE(absl::IsFailedPrecondition(state_.regions->Find(*session_, *id).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(CloseRegion(*state_.regions, *session_, *id)));
  EXPECT_TRUE(state_.regions->List(*session_).empty());
  state_.pool.Resume();
  state_.pool.Drain();
  EXPECT_TRUE(closed.ok());
  EXPECT_TRUE(absl::IsNotFound(state_.regions->Find(*session_, *id).status()));
}

TEST_F(RegionRegistryTest, UnsealedMemoryIsRefused) {
  UniqueFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(fd.get(), 4096), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus(kPage, std::move(fd))));
}

TEST_F(RegionRegistryTest, ShortMemoryIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus({8192, true}, SealedMemory(4096))));
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus({~uint64_t{0}, true}, SealedMemory(4096))));
}

TEST_F(RegionRegistryTest, EmptyRegionIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus({0, true}, SealedMemory(4096))));
}

TEST_F(RegionRegistryTest, OtherTypesOfDescriptorsAreRefused) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
  UniqueFd peer(sockets[1]);
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus(kPage, UniqueFd(sockets[0]))));
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus(kPage, UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC)))));
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus(kPage, UniqueFd(open("/", O_RDONLY | O_CLOEXEC)))));
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus(kPage, UniqueFd())));
}

TEST_F(RegionRegistryTest, WritableRegionNeedsAWritableDescriptor) {
  const UniqueFd memory = SealedMemory(4096);
  const std::string path = "/proc/self/fd/" + std::to_string(memory.get());
  EXPECT_TRUE(absl::IsInvalidArgument(RegisterStatus(kPage, UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC)))));
  EXPECT_TRUE(RegisterStatus({4096, false}, UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC))).ok());
}

TEST_F(RegionRegistryTest, FailureOfTheWorkersKeepsNothing) {
  state_.pool.FailNextControl(absl::ResourceExhaustedError("no memory"));
  EXPECT_TRUE(absl::IsResourceExhausted(RegisterStatus(kPage, SealedMemory(4096))));
  EXPECT_EQ(state_.regions->Counts().regions(), 0u);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(RegisterStatus(kPage, SealedMemory(4096)).ok());
}

TEST_F(RegionRegistryTest, RegionsOfOneSessionAreBounded) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(RegisterStatus(kPage, SealedMemory(4096)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(RegisterStatus(kPage, SealedMemory(4096))));
}

TEST_F(RegionRegistryTest, RegionsOfOneUserAreBounded) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(RegisterStatus(kPage, SealedMemory(4096)).ok());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(RegisterHost(*state_.regions, other_, kPage, SealedMemory(4096)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(RegisterHost(*state_.regions, other_, kPage, SealedMemory(4096)).status()));
}

TEST_F(RegionRegistryTest, BytesOfOneSessionAreBounded) {
  ASSERT_TRUE(RegisterStatus({1 << 19, false}, SealedMemory(1 << 19)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(RegisterStatus({(1 << 19) + 1, false}, SealedMemory(1 << 20))));
  EXPECT_TRUE(RegisterStatus({1 << 19, false}, SealedMemory(1 << 19)).ok());
}

TEST_F(RegionRegistryTest, QuotaComesBackWhenTheWorkersLetGo) {
  uint64_t last = 0;
  for (int i = 0; i < 4; ++i) last = *RegisterHost(*state_.regions, session_, kPage, SealedMemory(4096));
  state_.pool.Pause();
  state_.regions->Close(*session_, last, [](const absl::Status&) {});
  EXPECT_TRUE(absl::IsResourceExhausted(RegisterStatus(kPage, SealedMemory(4096))));
  state_.pool.Resume();
  state_.pool.Drain();
  EXPECT_TRUE(RegisterStatus(kPage, SealedMemory(4096)).ok());
}

TEST_F(RegionRegistryTest, SessionThatEndsWhileMappingLeavesNothing) {
  const size_t before = state_.pool.region_count();
  state_.pool.Pause();
  absl::StatusOr<uint64_t> result;
  state_.regions->RegisterHost(session_, kPage, SealedMemory(4096),
                               [&](const absl::StatusOr<uint64_t>& id) { result = id; });
  state_.sessions.Close(session_->id());
  state_.pool.Resume();
  state_.pool.Drain();
  EXPECT_TRUE(absl::IsUnauthenticated(result.status()));
  EXPECT_EQ(state_.pool.region_count(), before);
  EXPECT_EQ(state_.regions->Counts().regions(), 0u);
}

TEST_F(RegionRegistryTest, EndedSessionRegistersNothing) {
  state_.sessions.Close(session_->id());
  EXPECT_TRUE(absl::IsUnauthenticated(RegisterStatus(kPage, SealedMemory(4096))));
}

TEST_F(RegionRegistryTest, ManyCyclesLeakNoDescriptor) {
  const size_t before = CountDescriptors();
  for (int i = 0; i < 1000; ++i) {
    const auto id = RegisterHost(*state_.regions, session_, kPage, SealedMemory(4096));
    ASSERT_TRUE(id.ok()) << id.status();
    ASSERT_TRUE(CloseRegion(*state_.regions, *session_, *id).ok());
  }
  EXPECT_EQ(CountDescriptors(), before);
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kHost).bytes, 0u);
}

TEST_F(RegionRegistryTest, RefusalsLeakNoDescriptor) {
  const size_t before = CountDescriptors();
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(RegisterStatus({8192, true}, SealedMemory(4096)).ok());
    state_.pool.FailNextControl(absl::InternalError("scripted"));
    EXPECT_FALSE(RegisterStatus(kPage, SealedMemory(4096)).ok());
  }
  EXPECT_EQ(CountDescriptors(), before);
}

// A POSIX shared-memory object of this test.
class SharedMemoryTest : public testing::Test {
 protected:
  SharedMemoryTest() : name_("/gemmd-region-test-" + std::to_string(getpid())) {
    fd_.Reset(shm_open(name_.c_str(), O_CREAT | O_RDWR, 0600));
    EXPECT_EQ(ftruncate(fd_.get(), 4096), 0);
  }
  ~SharedMemoryTest() override { shm_unlink(name_.c_str()); }

  absl::Status Register(const std::string& name, const RegionExtent& extent) {
    return RegisterSharedMemory(*state_.regions, session_, name, extent).status();
  }

  const std::string name_;
  UniqueFd fd_;
  FrontEndState state_;
  std::shared_ptr<Session> session_ = *state_.sessions.Open(Me(), "");
};

TEST_F(SharedMemoryTest, IsRegisteredByName) {
  const auto id = RegisterSharedMemory(*state_.regions, session_, name_, kPage);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(state_.regions->Find(*session_, *id)->kind, RegionKind::kSharedMemory);
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kSharedMemory).bytes, 4096u);
}

TEST_F(SharedMemoryTest, OfAnotherUserIsLikeNone) {
  const absl::Status missing = Register("/gemmd-no-such-object", kPage);
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  auto stranger = *state_.sessions.Open(Identity{.remote = false, .uid = geteuid() + 1}, "");
  EXPECT_EQ(missing, RegisterSharedMemory(*state_.regions, stranger, name_, kPage).status());
}

TEST_F(SharedMemoryTest, RemoteSessionsAreNotAllowed) {
  auto remote = *state_.sessions.Open(Identity{}, "");
  EXPECT_TRUE(absl::IsPermissionDenied(RegisterSharedMemory(*state_.regions, remote, name_, kPage).status()));
}

TEST_F(SharedMemoryTest, BadNamesAreRefused) {
  for (const std::string& name :
       {std::string(), std::string("/"), std::string("x"), std::string("/a/b"), std::string("/.."),
        std::string("/../etc/passwd"), std::string("/a\0b", 4), "/" + std::string(255, 'x')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Register(name, kPage))) << name;
  }
}

TEST_F(SharedMemoryTest, LargerThanTheObjectIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Register(name_, {4097, true})));
  EXPECT_TRUE(absl::IsInvalidArgument(Register(name_, {0, true})));
}

TEST_F(SharedMemoryTest, FifoOfThatNameDoesNotBlock) {
  const std::string fifo = name_ + "-fifo";
  ASSERT_EQ(mkfifo(("/dev/shm" + fifo).c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsNotFound(Register(fifo, {4096, false})));
  unlink(("/dev/shm" + fifo).c_str());
}

IpcMemory SomeIpcMemory() {
  IpcMemory ipc;
  ipc.allocation_bytes = 2 * kGpuGranule;
  ipc.offset = 4096;
  return ipc;
}

class GpuRegionTest : public RegionRegistryTest {
 protected:
  absl::StatusOr<uint64_t> RegisterIpc(const std::shared_ptr<Session>& session, const RegionExtent& extent,
                                       const IpcMemory& ipc) {
    return RegisterDeviceIpc(*state_.regions, session, extent, kFakeGpu, ipc);
  }
  absl::StatusOr<PoolRegion> CreatePool(const std::shared_ptr<Session>& session, uint64_t byte_size,
                                        const std::string& device = "") {
    return gemmd::CreatePool(*state_.regions, session, byte_size, device);
  }

  const size_t regions_ = state_.pool.region_count();  // gemmd's own.
};

TEST_F(GpuRegionTest, MemoryOfAGpuBelongsToItsWorkers) {
  const auto id = RegisterDevice(*state_.regions, session_, kPage, kFakeGpu, SealedMemory(4096));
  ASSERT_TRUE(id.ok()) << id.status();
  const auto view = state_.regions->Find(*session_, *id);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->kind, RegionKind::kDevice);
  EXPECT_EQ(view->device, kFakeGpu);
  EXPECT_EQ(view->workers, MaskOf(0));
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kDevice).regions, 1u);
  EXPECT_TRUE(CloseRegion(*state_.regions, *session_, *id).ok());
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kDevice).bytes, 0u);
}

TEST_F(GpuRegionTest, AGpuThatNobodyServesIsRefusedByName) {
  for (const char* const gpu : {"GPU-other", "cpu", ""}) {
    const absl::Status status = RegisterDevice(*state_.regions, session_, kPage, gpu, SealedMemory(4096)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << gpu;
    EXPECT_EQ(status.message().substr(0, 5), "gpu: ");
  }
  EXPECT_EQ(CreatePool(session_, 4096, "GPU-other").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(state_.pool.region_count(), regions_);
  EXPECT_EQ(state_.regions->Counts().of(RegionKind::kDevice).registrations_total[3], 3u);
}

TEST_F(GpuRegionTest, GpuMemoryIsSharedOnOneMachineOnly) {
  const std::shared_ptr<Session> remote = *state_.sessions.Open(Identity{.remote = true, .uid = 0}, "");
  EXPECT_EQ(RegisterDevice(*state_.regions, remote, kPage, kFakeGpu, SealedMemory(4096)).status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(RegisterIpc(remote, kPage, SomeIpcMemory()).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(CreatePool(remote, 4096).status().code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(GpuRegionTest, ADescriptorIsNeeded) {
  const absl::Status status = RegisterDevice(*state_.regions, session_, kPage, kFakeGpu, UniqueFd()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message().substr(0, 12), "descriptor: ");
}

TEST_F(GpuRegionTest, AHandleIsMapped) {
  const auto id = RegisterIpc(session_, kPage, SomeIpcMemory());
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(state_.regions->Find(*session_, *id)->kind, RegionKind::kDeviceIpc);
}

TEST_F(GpuRegionTest, HandlesOfSmallAllocationsAreRefusedWithTheReason) {
  IpcMemory ipc = SomeIpcMemory();
  ipc.allocation_bytes = kGpuGranule - 1;
  const absl::Status status = RegisterIpc(session_, kPage, ipc).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("2 MiB"), std::string::npos) << status;
}

TEST_F(GpuRegionTest, ARegionLiesInsideItsAllocation) {
  IpcMemory ipc = SomeIpcMemory();
  ipc.offset = ipc.allocation_bytes - 2048;
  EXPECT_EQ(RegisterIpc(session_, kPage, ipc).status().code(), absl::StatusCode::kOutOfRange);
  ipc.offset = ~uint64_t{15};  // offset + byte_size overflows.
  EXPECT_EQ(RegisterIpc(session_, kPage, ipc).status().code(), absl::StatusCode::kOutOfRange);
  ipc.offset = 8;
  EXPECT_EQ(RegisterIpc(session_, kPage, ipc).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GpuRegionTest, APoolGivesItsClientADescriptor) {
  const auto pool = CreatePool(session_, 4096);
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_TRUE(pool->fd.valid());
  EXPECT_EQ(pool->device, kFakeGpu);
  const auto view = state_.regions->Find(*session_, pool->region_id);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->kind, RegionKind::kPool);
  EXPECT_EQ(view->workers, MaskOf(0));
  EXPECT_TRUE(view->writable);
}

TEST_F(GpuRegionTest, APoolCountsAgainstTheQuotaUntilItIsClosed) {
  EXPECT_EQ(CreatePool(session_, (1 << 20) + 1).status().code(), absl::StatusCode::kResourceExhausted);
  const auto pool = CreatePool(session_, 1 << 20);
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ(CreatePool(session_, 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(CloseRegion(*state_.regions, *session_, pool->region_id).ok());
  EXPECT_TRUE(CreatePool(session_, 1).ok());
}

TEST_F(GpuRegionTest, APoolThatDoesNotFitLeavesNothing) {
  state_.pool.FailNextControl(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(CreatePool(session_, 4096).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(state_.regions->Counts().regions(), 0u);
  EXPECT_EQ(state_.pool.region_count(), regions_);
}

TEST_F(GpuRegionTest, AllKindsGoWithTheirSession) {
  ASSERT_TRUE(RegisterDevice(*state_.regions, session_, kPage, kFakeGpu, SealedMemory(4096)).ok());
  ASSERT_TRUE(RegisterIpc(session_, kPage, SomeIpcMemory()).ok());
  ASSERT_TRUE(CreatePool(session_, 4096).ok());
  state_.sessions.Close(session_->id(), SessionEnd::kClient);
  WaitUntil([this] { return state_.pool.region_count() == regions_; });
  WaitUntil([this] { return state_.regions->Counts().regions() == 0; });
  EXPECT_EQ(state_.regions->Counts().reaped_total, 3u);
}

}  // namespace
}  // namespace gemmd
