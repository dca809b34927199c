// SPDX-License-Identifier: Apache-2.0
// What tests of the front end share: a temporary folder, state over a FakeWorkerPool, a gRPC server on a Unix socket in
// that folder, and small helpers.
#ifndef GEMMD_TESTS_SERVER_SERVICE_FIXTURE_H_
#define GEMMD_TESTS_SERVER_SERVICE_FIXTURE_H_

#include "proto/unique_fd.h"
#include "server/authenticator.h"
#include "server/region_registry.h"
#include "server/session_registry.h"
#include "server/staging_arena.h"
#include "server/tensor_registry.h"
#include "tests/server/fake_worker_pool.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {

// A fresh folder, removed with what is in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Everything that services stand on.
struct FrontEndState {
  explicit FrontEndState(const Quotas& quotas = {}, uint64_t arena_bytes = 16 << 20);

  FakeWorkerPool pool;
  std::shared_ptr<RegionRegistry> regions;
  std::shared_ptr<TensorRegistry> tensors;
  SessionRegistry sessions;
  Authenticator authenticator;
  std::unique_ptr<StagingArena> arena;
};

// A server on a Unix socket in a temporary folder, and a channel to it.
class TestServer {
 public:
  explicit TestServer(const std::vector<grpc::Service*>& services);
  ~TestServer();
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  TemporaryFolder folder_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// Adds the credentials of a session to a call.
void Authorize(grpc::ClientContext& context, uint64_t session_id, const std::string& secret_hex);
void Authorize(grpc::ClientContext& context, const Session& session);

// Open descriptors of this process.
size_t CountDescriptors();

// Waits until `condition` holds; fails the test after 10 s.
void WaitUntil(const std::function<bool()>& condition);

// The status of a registration, waited for.
absl::StatusOr<uint64_t> RegisterDevice(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                        const RegionExtent& extent, const std::string& gpu, UniqueFd fd);
absl::StatusOr<uint64_t> RegisterDeviceIpc(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                           const RegionExtent& extent, const std::string& gpu, const IpcMemory& ipc);
absl::StatusOr<PoolRegion> CreatePool(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                      uint64_t byte_size, const std::string& device);
absl::StatusOr<uint64_t> RegisterHost(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                      const RegionExtent& extent, UniqueFd fd);
absl::StatusOr<uint64_t> RegisterSharedMemory(RegionRegistry& regions, const std::shared_ptr<Session>& session,
                                              const std::string& name, const RegionExtent& extent);
absl::Status CloseRegion(RegionRegistry& regions, const Session& session, uint64_t region_id);
absl::StatusOr<TensorRecord> CreateTensor(TensorRegistry& tensors, const std::shared_ptr<Session>& session,
                                          const TensorSpec& spec);

// Sealed memory, or a failed test.
UniqueFd SealedMemory(uint64_t byte_size);

}  // namespace gemmd

#endif  // GEMMD_TESTS_SERVER_SERVICE_FIXTURE_H_
