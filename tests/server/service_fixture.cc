// SPDX-License-Identifier: Apache-2.0
#include "tests/server/service_fixture.h"

#include "proto/broker.h"

#include "absl/synchronization/notification.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <optional>
#include <thread>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

// Calls `start` with a callback and returns what the callback got.
template <typename Result>
Result Await(const std::function<void(std::function<void(Result)>)>& start) {
  absl::Notification called;
  std::optional<Result> result;
  start([&](Result value) {
    result = std::move(value);
    called.Notify();
  });
  called.WaitForNotification();
  return *std::move(result);
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  path_ = (std::filesystem::temp_directory_path() / "gemmd-XXXXXX").string();
  if (mkdtemp(path_.data()) == nullptr) std::abort();
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

FrontEndState::FrontEndState(const Quotas& quotas, uint64_t arena_bytes)
    : regions(RegionRegistry::Create(quotas, pool)),
      tensors(TensorRegistry::Create(quotas, pool)),
      sessions(quotas, regions, tensors),
      authenticator(sessions),
      arena(*StagingArena::Create(arena_bytes, pool)) {}

TestServer::TestServer(const std::vector<grpc::Service*>& services) {
  const std::string address = "unix:" + folder_.path() + "/grpc";
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.SetMaxReceiveMessageSize(64 << 20);
  for (grpc::Service* service : services) builder.RegisterService(service);
  server_ = builder.BuildAndStart();
  channel_ = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

TestServer::~TestServer() {
  // Calls that a test left open are cancelled at once.
  server_->Shutdown(std::chrono::system_clock::now());
}

void Authorize(grpc::ClientContext& context, uint64_t session_id, const std::string& secret_hex) {
  context.AddMetadata(kSessionMetadata, std::to_string(session_id));
  context.AddMetadata(kSecretMetadata, secret_hex);
}

void Authorize(grpc::ClientContext& context, const Session& session) {
  Authorize(context, session.id(), session.SecretHex());
}

size_t CountDescriptors() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

void WaitUntil(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "condition did not come true within 10 s";
    std::this_thread::yield();
  }
}

absl::StatusOr<uint64_t> RegisterHost(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                      const RegionExtent& extent, UniqueFd fd) {
  return Await<absl::StatusOr<uint64_t>>(
      [&](auto done) { regions.RegisterHost(session, extent, std::move(fd), std::move(done)); });
}

absl::StatusOr<uint64_t> RegisterDevice(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                        const RegionExtent& extent, const std::string& gpu, UniqueFd fd) {
  return Await<absl::StatusOr<uint64_t>>(
      [&](auto done) { regions.RegisterDevice(session, extent, gpu, std::move(fd), std::move(done)); });
}

absl::StatusOr<uint64_t> RegisterDeviceIpc(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                           const RegionExtent& extent, const std::string& gpu, const IpcMemory& ipc) {
  return Await<absl::StatusOr<uint64_t>>(
      [&](auto done) { regions.RegisterDeviceIpc(session, extent, gpu, ipc, std::move(done)); });
}

absl::StatusOr<PoolRegion> CreatePool(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                      uint64_t byte_size, const std::string& device) {
  return Await<absl::StatusOr<PoolRegion>>(
      [&](auto done) { regions.CreatePool(session, byte_size, device, std::move(done)); });
}

absl::StatusOr<uint64_t> RegisterSharedMemory(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                              const std::string& name, const RegionExtent& extent) {
  return Await<absl::StatusOr<uint64_t>>(
      [&](auto done) { regions.RegisterSharedMemory(session, name, extent, std::move(done)); });
}

absl::Status CloseRegion(RegionRegistry& regions, const Session& session, uint64_t region_id) {
  return Await<absl::Status>([&](auto done) { regions.Close(session, region_id, std::move(done)); });
}

absl::StatusOr<TensorRecord> CreateTensor(TensorRegistry& tensors, const std::shared_ptr<Session>& session,
                                          const TensorSpec& spec) {
  return Await<absl::StatusOr<TensorRecord>>([&](auto done) { tensors.CreateTensor(session, spec, std::move(done)); });
}

UniqueFd SealedMemory(uint64_t byte_size) {
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(byte_size);
  EXPECT_TRUE(fd.ok()) << fd.status();
  return *std::move(fd);
}

}  // namespace gemmd
