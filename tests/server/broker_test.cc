// SPDX-License-Identifier: Apache-2.0
#include "server/broker.h"

#include "proto/broker.h"
#include "proto/message_socket.h"
#include "tests/server/service_fixture.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

absl::StatusCode CodeOf(const BrokerReply& reply) { return static_cast<absl::StatusCode>(reply.code); }

// A client's end of a broker connection; every call waits for its reply.
class Client {
 public:
  explicit Client(const std::string& path) : socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    EXPECT_EQ(connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }

  int socket_fd() const { return socket_.get(); }
  void Hangup() { socket_.Reset(); }

  absl::Status Send(const BrokerRequest& request, int fd = -1) { return SendStruct(socket_.get(), request, fd); }

  // UNAVAILABLE stands for a connection that was closed.
  BrokerReply Receive() {
    BrokerReply reply;
    const auto message = ReceiveMessage(socket_.get());
    if (!message.ok() || message->bytes.size() != sizeof(reply)) {
      reply.code = static_cast<uint32_t>(absl::StatusCode::kUnavailable);
      return reply;
    }
    std::memcpy(&reply, message->bytes.data(), sizeof(reply));
    return reply;
  }

  BrokerReply Call(const BrokerRequest& request, int fd = -1) {
    EXPECT_TRUE(Send(request, fd).ok());
    return Receive();
  }

  BrokerReply Hello() { return Call(BrokerRequest{}); }

  BrokerReply Register(uint64_t byte_size, int fd) {
    BrokerRequest request;
    request.type = BrokerRequestType::kRegisterHost;
    request.byte_size = byte_size;
    request.writable = 1;
    return Call(request, fd);
  }

  BrokerReply CloseRegion(uint64_t region_id) {
    BrokerRequest request;
    request.type = BrokerRequestType::kCloseRegion;
    request.region_id = region_id;
    return Call(request);
  }

 private:
  UniqueFd socket_;
};

class BrokerTest : public testing::Test {
 protected:
  BrokerTest() { StartBroker({}); }

  void StartBroker(BrokerOptions options) {
    options.path = path_;
    broker_.reset();
    auto broker = Broker::Start(std::move(options), state_.sessions, *state_.regions);
    ASSERT_TRUE(broker.ok()) << broker.status();
    broker_ = *std::move(broker);
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_.path() + "/socket.broker";
  FrontEndState state_;
  std::unique_ptr<Broker> broker_;
};

TEST_F(BrokerTest, HelloOpensASessionOfThePeersUser) {
  Client client(path_);
  BrokerRequest hello;
  std::strcpy(hello.client_name, "tester");
  const BrokerReply reply = client.Call(hello);
  ASSERT_EQ(reply.code, 0u) << reply.message;
  const std::string secret(reinterpret_cast<const char*>(reply.secret), kSecretBytes);
  std::string hex;
  for (const uint8_t byte : reply.secret) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  const auto session = state_.sessions.Authenticate(reply.session_id, hex);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->identity(), (Identity{.remote = false, .uid = geteuid()}));
  EXPECT_EQ((*session)->client_name(), "tester");
}

TEST_F(BrokerTest, SocketIsForOwnerAndGroup) {
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0660u);
}

TEST_F(BrokerTest, RegisteredMemoryIsSharedWithTheWorkers) {
  Client client(path_);
  client.Hello();
  const UniqueFd memory = SealedMemory(4096);
  const BrokerReply reply = client.Register(4096, memory.get());
  ASSERT_EQ(reply.code, 0u) << reply.message;
  const auto mapping = SharedMapping::Map(memory.get(), 4096, Access::kReadWrite);
  mapping->data()[7] = std::byte{42};
  EXPECT_EQ(*state_.pool.Bytes(reply.region_id, 7, 1), std::byte{42});
  EXPECT_EQ(client.CloseRegion(reply.region_id).code, 0u);
  EXPECT_EQ(CodeOf(client.CloseRegion(reply.region_id)), absl::StatusCode::kNotFound);
}

TEST_F(BrokerTest, DeadClientLeavesNothing) {
  const size_t regions = state_.pool.region_count();
  const size_t descriptors = CountDescriptors();
  {
    Client client(path_);
    client.Hello();
    for (int i = 0; i < 10; ++i) ASSERT_EQ(client.Register(4096, SealedMemory(4096).get()).code, 0u);
    EXPECT_EQ(state_.pool.region_count(), regions + 10);
  }
  WaitUntil([&] { return state_.regions->Counts().regions() == 0; });
  WaitUntil([&] { return broker_->connections() == 0; });
  state_.pool.Drain();
  EXPECT_EQ(state_.pool.region_count(), regions);
  EXPECT_EQ(state_.sessions.Counts().open_local, 0u);
  WaitUntil([&] { return CountDescriptors() == descriptors; });
}

TEST_F(BrokerTest, ClientThatDiesWhileMappingLeavesNothing) {
  const size_t regions = state_.pool.region_count();
  Client client(path_);
  client.Hello();
  state_.pool.Pause();
  BrokerRequest request;
  request.type = BrokerRequestType::kRegisterHost;
  request.byte_size = 4096;
  ASSERT_TRUE(client.Send(request, SealedMemory(4096).get()).ok());
  WaitUntil([&] { return state_.regions->Counts().regions() == 1; });
  client.Hangup();
  WaitUntil([&] { return broker_->connections() == 0; });
  state_.pool.Resume();
  WaitUntil([&] { return state_.regions->Counts().regions() == 0; });
  state_.pool.Drain();
  EXPECT_EQ(state_.pool.region_count(), regions);
}

TEST_F(BrokerTest, RepliesComeInOrder) {
  Client client(path_);
  client.Hello();
  state_.pool.Pause();
  BrokerRequest request;
  request.type = BrokerRequestType::kRegisterHost;
  request.byte_size = 4096;
  ASSERT_TRUE(client.Send(request, SealedMemory(4096).get()).ok());
  request.type = static_cast<BrokerRequestType>(77);
  ASSERT_TRUE(client.Send(request).ok());
  state_.pool.Resume();
  EXPECT_EQ(client.Receive().code, 0u);
  EXPECT_EQ(CodeOf(client.Receive()), absl::StatusCode::kInvalidArgument);
}

TEST_F(BrokerTest, RequestsBeforeHelloAreRefused) {
  Client client(path_);
  EXPECT_EQ(CodeOf(client.Register(4096, SealedMemory(4096).get())), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CodeOf(client.CloseRegion(1)), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(client.Hello().code, 0u);
}

TEST_F(BrokerTest, SecondHelloIsRefused) {
  Client client(path_);
  EXPECT_EQ(client.Hello().code, 0u);
  EXPECT_EQ(CodeOf(client.Hello()), absl::StatusCode::kFailedPrecondition);
}

TEST_F(BrokerTest, MalformedMessagesAreAnswered) {
  Client client(path_);
  for (const size_t size : {size_t{1}, sizeof(BrokerRequest) - 1, sizeof(BrokerRequest) + 1, size_t{5000}}) {
    const std::vector<std::byte> bytes(size);
    ASSERT_EQ(send(client.socket_fd(), bytes.data(), size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
    EXPECT_EQ(CodeOf(client.Receive()), absl::StatusCode::kInvalidArgument) << size;
  }
  BrokerRequest request;
  request.version = 99;
  EXPECT_EQ(CodeOf(client.Call(request)), absl::StatusCode::kInvalidArgument);
  request = {};
  request.reserved = 1;
  EXPECT_EQ(CodeOf(client.Call(request)), absl::StatusCode::kInvalidArgument);
  request = {};
  std::memset(request.client_name, 'x', sizeof(request.client_name));
  EXPECT_EQ(CodeOf(client.Call(request)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client.Hello().code, 0u);
}

TEST_F(BrokerTest, WrongDescriptorsAreRefusedAndNotLeaked) {
  Client client(path_);
  const UniqueFd memory = SealedMemory(4096);
  EXPECT_EQ(CodeOf(client.Call(BrokerRequest{}, memory.get())), absl::StatusCode::kInvalidArgument);
  client.Hello();
  const size_t before = CountDescriptors();
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(CodeOf(client.Register(4096, -1)), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodeOf(client.Register(4096, null.get())), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodeOf(client.Register(8192, memory.get())), absl::StatusCode::kInvalidArgument);
    BrokerRequest request;
    request.type = BrokerRequestType::kCloseRegion;
    EXPECT_EQ(CodeOf(client.Call(request, memory.get())), absl::StatusCode::kInvalidArgument);
  }
  // The broker closes the last one just after it replied.
  WaitUntil([&] { return CountDescriptors() == before + 1; });
}

TEST_F(BrokerTest, ManyDescriptorsInOneMessageAreRefusedAndNotLeaked) {
  Client client(path_);
  client.Hello();
  const UniqueFd memory = SealedMemory(4096);
  const size_t before = CountDescriptors();
  constexpr size_t kCount = 253;  // The kernel sends no more (SCM_MAX_FD).
  for (const BrokerRequestType type :
       {BrokerRequestType::kRegisterHost, BrokerRequestType::kCloseRegion, BrokerRequestType::kRegisterDevice,
        BrokerRequestType::kRegisterDeviceIpc, BrokerRequestType::kCreatePool}) {
    BrokerRequest request;
    request.type = type;
    request.byte_size = 4096;
    iovec vector{&request, sizeof(request)};
    alignas(cmsghdr) char control[CMSG_SPACE(kCount * sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(kCount * sizeof(int));
    const std::vector<int> fds(kCount, memory.get());
    std::memcpy(CMSG_DATA(rights), fds.data(), kCount * sizeof(int));
    ASSERT_GT(sendmsg(client.socket_fd(), &header, MSG_NOSIGNAL), 0);
    EXPECT_EQ(CodeOf(client.Receive()), absl::StatusCode::kInvalidArgument) << static_cast<int>(type);
    WaitUntil([&] { return CountDescriptors() == before; });
  }
}

TEST_F(BrokerTest, ManyCyclesLeakNoDescriptor) {
  Client client(path_);
  client.Hello();
  const UniqueFd memory = SealedMemory(4096);
  const size_t before = CountDescriptors();
  for (int i = 0; i < 1000; ++i) {
    const BrokerReply reply = client.Register(4096, memory.get());
    ASSERT_EQ(reply.code, 0u) << reply.message;
    ASSERT_EQ(client.CloseRegion(reply.region_id).code, 0u);
  }
  EXPECT_EQ(CountDescriptors(), before);
}

TEST_F(BrokerTest, ForeignRegionsCannotBeClosed) {
  Client owner(path_);
  Client other(path_);
  owner.Hello();
  other.Hello();
  const BrokerReply region = owner.Register(4096, SealedMemory(4096).get());
  const BrokerReply foreign = other.CloseRegion(region.region_id);
  const BrokerReply unknown = other.CloseRegion(987654);
  EXPECT_EQ(CodeOf(foreign), absl::StatusCode::kNotFound);
  EXPECT_STREQ(foreign.message, unknown.message);
  EXPECT_EQ(owner.CloseRegion(region.region_id).code, 0u);
}

TEST_F(BrokerTest, ConnectionsOverTheLimitAreToldSo) {
  StartBroker({.path = "", .allowed_uids = {}, .quotas = {.broker_connections = 2}});
  Client first(path_);
  Client second(path_);
  ASSERT_EQ(first.Hello().code, 0u);
  ASSERT_EQ(second.Hello().code, 0u);
  Client third(path_);
  EXPECT_EQ(CodeOf(third.Receive()), absl::StatusCode::kResourceExhausted);
  first.Hangup();
  WaitUntil([&] { return broker_->connections() == 1; });
  Client fourth(path_);
  EXPECT_EQ(fourth.Hello().code, 0u);
}

TEST_F(BrokerTest, ConnectionsOfOneUserAreBounded) {
  StartBroker({.path = "", .allowed_uids = {}, .quotas = {.broker_connections_per_uid = 1}});
  Client first(path_);
  ASSERT_EQ(first.Hello().code, 0u);
  Client second(path_);
  EXPECT_EQ(CodeOf(second.Receive()), absl::StatusCode::kResourceExhausted);
}

TEST_F(BrokerTest, UsersOffTheListAreRefused) {
  StartBroker({.path = "", .allowed_uids = std::vector<uid_t>{geteuid() + 1}, .quotas = {}});
  Client client(path_);
  EXPECT_EQ(CodeOf(client.Receive()), absl::StatusCode::kPermissionDenied);
}

TEST_F(BrokerTest, ClientThatNeverReadsItsRepliesIsCutOff) {
  Client client(path_);
  BrokerRequest request;
  request.type = static_cast<BrokerRequestType>(77);
  absl::Status status;
  while (status.ok()) status = client.Send(request);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  WaitUntil([&] { return broker_->connections() == 0; });
}

TEST_F(BrokerTest, StaleSocketFileIsReplaced) {
  broker_.reset();
  const UniqueFd stale(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(stale.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  StartBroker({});
  Client client(path_);
  EXPECT_EQ(client.Hello().code, 0u);
}

TEST_F(BrokerTest, LiveSocketAndOtherFilesAreLeftAlone) {
  BrokerOptions options;
  options.path = path_;
  EXPECT_TRUE(absl::IsAlreadyExists(Broker::Start(options, state_.sessions, *state_.regions).status()));
  options.path = folder_.path() + "/file";
  const UniqueFd file(open(options.path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(absl::IsAlreadyExists(Broker::Start(options, state_.sessions, *state_.regions).status()));
  EXPECT_EQ(access(options.path.c_str(), F_OK), 0);
  Client client(path_);
  EXPECT_EQ(client.Hello().code, 0u);
}

TEST_F(BrokerTest, OverlongPathIsRefused) {
  BrokerOptions options;
  options.path = "/" + std::string(107, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(Broker::Start(options, state_.sessions, *state_.regions).status()));
}

TEST_F(BrokerTest, StoppingEndsItsSessionsAndRemovesTheSocket) {
  Client client(path_);
  client.Hello();
  ASSERT_EQ(client.Register(4096, SealedMemory(4096).get()).code, 0u);
  broker_.reset();
  EXPECT_EQ(state_.sessions.Counts().open_local, 0u);
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
  EXPECT_EQ(CodeOf(client.Receive()), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace gemmd
