// SPDX-License-Identifier: Apache-2.0
#include "server/session_service.h"

#include "tests/server/service_fixture.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace gemmd {
namespace {

class SessionServiceTest : public testing::Test {
 protected:
  SessionServiceTest() {
    fd_.Reset(shm_open(name_.c_str(), O_CREAT | O_RDWR, 0600));
    EXPECT_EQ(ftruncate(fd_.get(), 4096), 0);
  }
  ~SessionServiceTest() override { shm_unlink(name_.c_str()); }

  grpc::Status Register(const Session* session, const std::string& name, v1::Region* region) {
    grpc::ClientContext context;
    if (session != nullptr) Authorize(context, *session);
    v1::RegisterSharedMemoryRequest request;
    request.set_name(name);
    request.set_byte_size(4096);
    return stub_->RegisterSharedMemory(&context, request, region);
  }

  grpc::Status Close(const Session& session, uint64_t region_id) {
    grpc::ClientContext context;
    Authorize(context, session);
    v1::CloseRegionRequest request;
    request.set_region_id(region_id);
    v1::CloseRegionResponse response;
    return stub_->CloseRegion(&context, request, &response);
  }

  const std::string name_ = "/gemmd-session-test-" + std::to_string(getpid());
  UniqueFd fd_;
  FrontEndState state_{Quotas{.sessions = 3}};
  SessionService service_{state_.sessions, *state_.regions, state_.authenticator};
  TestServer server_{{&service_}};
  std::unique_ptr<v1::Sessions::Stub> stub_ = v1::Sessions::NewStub(server_.channel());
  std::shared_ptr<Session> local_ = *state_.sessions.Open(Identity{.remote = false, .uid = geteuid()}, "");
};

TEST_F(SessionServiceTest, OpenGivesASessionThatEndsWithTheStream) {
  v1::SessionEvent event;
  {
    grpc::ClientContext context;
    auto stream = stub_->Open(&context, v1::OpenSessionRequest());
    ASSERT_TRUE(stream->Read(&event));
    const auto session = state_.sessions.Authenticate(event.session_id(), event.secret());
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_TRUE((*session)->identity().remote);
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  WaitUntil([&] { return state_.sessions.Counts().open_remote == 0; });
  EXPECT_FALSE(state_.sessions.Authenticate(event.session_id(), event.secret()).ok());
}

TEST_F(SessionServiceTest, OpenIsBounded) {
  grpc::ClientContext contexts[3];
  std::unique_ptr<grpc::ClientReader<v1::SessionEvent>> streams[3];
  v1::SessionEvent event;
  for (int i = 0; i < 2; ++i) {
    streams[i] = stub_->Open(&contexts[i], v1::OpenSessionRequest());
    ASSERT_TRUE(streams[i]->Read(&event));
  }
  streams[2] = stub_->Open(&contexts[2], v1::OpenSessionRequest());
  EXPECT_FALSE(streams[2]->Read(&event));
  EXPECT_EQ(streams[2]->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (int i = 0; i < 2; ++i) contexts[i].TryCancel();
}

TEST_F(SessionServiceTest, BadClientNameIsRefused) {
  grpc::ClientContext context;
  v1::OpenSessionRequest request;
  request.set_client_name("bell\a");
  auto stream = stub_->Open(&context, request);
  v1::SessionEvent event;
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SessionServiceTest, EndSessionsEndsStreamsWithUnavailable) {
  grpc::ClientContext context;
  auto stream = stub_->Open(&context, v1::OpenSessionRequest());
  v1::SessionEvent event;
  ASSERT_TRUE(stream->Read(&event));
  service_.EndSessions();
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext later;
  EXPECT_EQ(stub_->Open(&later, v1::OpenSessionRequest())->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SessionServiceTest, SharedMemoryIsRegisteredListedAndClosed) {
  v1::Region region;
  const grpc::Status status = Register(local_.get(), name_, &region);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(region.kind(), v1::SHARED_MEMORY);
  grpc::ClientContext context;
  Authorize(context, *local_);
  v1::ListRegionsResponse list;
  ASSERT_TRUE(stub_->ListRegions(&context, v1::ListRegionsRequest(), &list).ok());
  ASSERT_EQ(list.regions_size(), 1);
  EXPECT_EQ(list.regions(0).id(), region.id());
  EXPECT_TRUE(Close(*local_, region.id()).ok());
  EXPECT_EQ(Close(*local_, region.id()).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(SessionServiceTest, CallsWithoutSessionAreUnauthenticated) {
  v1::Region region;
  EXPECT_EQ(Register(nullptr, name_, &region).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(SessionServiceTest, ForgedIncompleteAndRepeatedCredentialsAreUnauthenticated) {
  const std::string secret = local_->SecretHex();
  const auto list = [&](const std::vector<std::pair<std::string, std::string>>& metadata) {
    grpc::ClientContext context;
    for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
    v1::ListRegionsResponse response;
    return stub_->ListRegions(&context, v1::ListRegionsRequest(), &response).error_code();
  };
  const std::string id = std::to_string(local_->id());
  EXPECT_EQ(list({{kSessionMetadata, id}, {kSecretMetadata, secret}}), grpc::StatusCode::OK);
  EXPECT_EQ(list({{kSessionMetadata, id}, {kSecretMetadata, std::string(32, 'a')}}), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(list({{kSessionMetadata, id}}), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(list({{kSecretMetadata, secret}}), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(list({{kSessionMetadata, id}, {kSecretMetadata, secret}, {kSecretMetadata, secret}}),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(list({{kSessionMetadata, "-1"}, {kSecretMetadata, secret}}), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(list({{kSessionMetadata, "0"}, {kSecretMetadata, std::string(32, '0')}}),
            grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(SessionServiceTest, RemoteSessionsRegisterNoSharedMemory) {
  auto remote = *state_.sessions.Open(Identity{}, "");
  v1::Region region;
  EXPECT_EQ(Register(remote.get(), name_, &region).error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(SessionServiceTest, MissingObjectIsNotFound) {
  v1::Region region;
  const grpc::Status status = Register(local_.get(), "/gemmd-no-such-object", &region);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message().find("no-such-object"), std::string::npos);
}

}  // namespace
}  // namespace gemmd
