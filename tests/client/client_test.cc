// SPDX-License-Identifier: Apache-2.0
// The client library against a small service and broker of the test's own, over real sockets.
#include "client/client.h"

#include "client/health.h"
#include "gemmd/v1/sessions.grpc.pb.h"
#include "proto/cores.h"
#include "proto/message_socket.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

// Answers Run with the inline bytes of A, or with INVALID_ARGUMENT if there are none, after 20 ms for each step of
// priority.
class FakeGemm final : public v1::Gemm::Service {
 public:
  grpc::Status Run(grpc::ServerContext* context, const v1::RunRequest* request, v1::RunResponse* response) override {
    absl::SleepFor(absl::Milliseconds(20) * static_cast<int>(request->priority()));
    const auto& metadata = context->client_metadata();
    const auto session = metadata.find(kSessionMetadata);
    const absl::MutexLock lock(&mutex_);
    session_ = session == metadata.end() ? "" : std::string(session->second.data(), session->second.size());
    const auto secret = metadata.find(kSecretMetadata);
    secret_ = secret == metadata.end() ? "" : std::string(secret->second.data(), secret->second.size());
    last_ = *request;
    if (request->dense().a().inline_().empty()) return {grpc::StatusCode::INVALID_ARGUMENT, "a: expected elements"};
    response->set_d(request->dense().a().inline_());
    return grpc::Status::OK;
  }

  grpc::Status Stream(grpc::ServerContext*,
                      grpc::ServerReaderWriter<v1::RunResponse, v1::RunRequest>* stream) override {
    // Answers in pairs, the second first. An operation of priority 3 breaks the stream.
    v1::RunRequest first;
    v1::RunRequest second;
    while (stream->Read(&first)) {
      if (first.priority() == 3) return {grpc::StatusCode::UNAVAILABLE, "broken"};
      const bool pair = stream->Read(&second);
      for (const v1::RunRequest* request : {&second, &first}) {
        if (request == &second && !pair) continue;
        v1::RunResponse response;
        response.set_request_id(request->request_id());
        response.set_d(request->dense().a().inline_());
        if (request->dense().a().inline_().empty()) {
          response.mutable_status()->set_code(3);
          response.mutable_status()->set_message("a: expected elements");
        }
        stream->Write(response);
      }
    }
    return grpc::Status::OK;
  }

  std::string session() {
    const absl::MutexLock lock(&mutex_);
    return session_;
  }
  std::string secret() {
    const absl::MutexLock lock(&mutex_);
    return secret_;
  }
  v1::RunRequest last() {
    const absl::MutexLock lock(&mutex_);
    return last_;
  }

 private:
  absl::Mutex mutex_;
  std::string session_;
  std::string secret_;
  v1::RunRequest last_;
};

class FakeTensors final : public v1::Tensors::Service {
 public:
  grpc::Status Write(grpc::ServerContext*, grpc::ServerReader<v1::WriteTensorRequest>* reader,
                     v1::WriteTensorResponse* response) override {
    v1::WriteTensorRequest chunk;
    while (reader->Read(&chunk)) {
      if (chunk.offset() != bytes_.size()) return {grpc::StatusCode::OUT_OF_RANGE, "offset"};
      bytes_.append(chunk.data());
    }
    response->set_bytes_written(bytes_.size());
    return grpc::Status::OK;
  }
  grpc::Status Read(grpc::ServerContext*, const v1::ReadTensorRequest*,
                    grpc::ServerWriter<v1::ReadTensorResponse>* writer) override {
    v1::ReadTensorResponse chunk;
    chunk.set_data(bytes_.substr(0, 5));
    writer->Write(chunk);
    chunk.set_data(bytes_.substr(5));
    writer->Write(chunk);
    return grpc::Status::OK;
  }

 private:
  std::string bytes_;
};

class FakeSessions final : public v1::Sessions::Service {
 public:
  grpc::Status Open(grpc::ServerContext* context, const v1::OpenSessionRequest*,
                    grpc::ServerWriter<v1::SessionEvent>* writer) override {
    v1::SessionEvent event;
    event.set_session_id(77);
    event.set_secret("00112233445566778899aabbccddeeff");
    writer->Write(event);
    while (!context->IsCancelled())
      absl::SleepFor(absl::Milliseconds(1));  // Polling is what the synchronous API offers.
    closed.Notify();
    return grpc::Status::OK;
  }
  absl::Notification closed;
};

// Serves one connection: hello gives session 5 and region requests count up from 100; a size of 13 is refused.
class FakeBroker {
 public:
  explicit FakeBroker(const std::string& path) : listener_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    thread_ = std::thread([this] { Serve(); });
  }
  ~FakeBroker() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }

  absl::Notification closed;
  std::vector<uint64_t> closed_regions;  // Read after `closed`.
  std::vector<uint64_t> registered;      // Read after `closed`.

 private:
  void Serve() {
    const UniqueFd connection(accept(listener_.get(), nullptr, nullptr));
    uint64_t next_region = 100;
    while (connection.valid()) {
      const absl::StatusOr<ReceivedMessage> message = ReceiveMessage(connection.get());
      if (!message.ok()) break;
      BrokerRequest request;
      std::memcpy(&request, message->bytes.data(), sizeof(request));
      BrokerReply reply;
      reply.session_id = 5;
      std::memset(reply.secret, 0xab, sizeof(reply.secret));
      if (request.type == BrokerRequestType::kCloseRegion) closed_regions.push_back(request.region_id);
      if (request.type == BrokerRequestType::kRegisterHost) {
        registered.push_back(request.byte_size);
        reply.region_id = next_region++;
        if (request.byte_size == 13 || !CheckSealedMemory(message->fd.get(), request.byte_size).ok()) {
          reply.code = static_cast<uint32_t>(absl::StatusCode::kResourceExhausted);
          std::strcpy(reply.message, "quota: expected less");
        }
      }
      if (!SendStruct(connection.get(), reply).ok()) break;
    }
    closed.Notify();
  }

  UniqueFd listener_;
  std::thread thread_;
};

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/gemmd-client-test-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    socket_ = folder_ + "/s";
    broker_ = std::make_unique<FakeBroker>(socket_ + kBrokerSuffix);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_, grpc::InsecureServerCredentials());
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&gemm_);
    builder.RegisterService(&tensors_);
    builder.RegisterService(&sessions_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }

  void TearDown() override {
    server_->Shutdown();
    broker_.reset();
    unlink(socket_.c_str());
    unlink((socket_ + kBrokerSuffix).c_str());
    rmdir(folder_.c_str());
  }

  std::unique_ptr<Client> Connect() {
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect("unix:" + socket_);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  static DenseCall Call(const std::string& a) {
    return {.a = Inline<char>(a, DType::kU8, {static_cast<int64_t>(a.size())})};
  }

  std::string folder_;
  std::string socket_;
  int port_ = 0;
  std::unique_ptr<FakeBroker> broker_;
  FakeGemm gemm_;
  FakeTensors tensors_;
  FakeSessions sessions_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(ClientTest, InlineCallBringsTheResultBack) {
  const auto response = Connect()->Dense(Call("abc"));
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->d(), "abc");
}

TEST_F(ClientTest, ErrorKeepsItsCodeAndMessage) {
  const auto response = Connect()->Dense({});
  EXPECT_EQ(response.status(), absl::InvalidArgumentError("a: expected elements"));
}

TEST_F(ClientTest, CallsCarryTheBrokersCredentials) {
  ASSERT_TRUE(Connect()->Dense(Call("x")).ok());
  EXPECT_EQ(gemm_.session(), "5");
  EXPECT_EQ(gemm_.secret(), "abababababababababababababababab");
}

TEST_F(ClientTest, WithoutASessionCallsCarryNone) {
  const auto client = Client::Connect("unix:" + socket_, {.open_session = false});
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE((*client)->Dense(Call("x")).ok());
  EXPECT_EQ(gemm_.session(), "");
}

TEST_F(ClientTest, OverTcpTheSessionIsAStreamThatEndsWithTheClient) {
  auto client = Client::Connect(absl::StrCat("127.0.0.1:", port_));
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->session().id(), 77u);
  EXPECT_EQ((*client)->CreateHostRegion(100).status().code(), absl::StatusCode::kFailedPrecondition);
  client->reset();
  EXPECT_TRUE(sessions_.closed.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST_F(ClientTest, NobodyThereIsUnavailable) {
  const auto client = Client::Connect("unix:/nonexistent/socket", {.connect_timeout = absl::Milliseconds(50)});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, RegionIsSealedSharedAndClosed) {
  {
    const std::unique_ptr<Client> client = Connect();
    const auto region = client->CreateHostRegion(4096);
    ASSERT_TRUE(region.ok()) << region.status();
    region->Elements<float>(16, 2)[1] = 3.0f;
    EXPECT_EQ(region->id(), 100u);
    const TensorView view = region->View(16, DType::kF32, {2});
    EXPECT_EQ(view.id, 100u);
    EXPECT_EQ(view.offset, 16u);
  }
  ASSERT_TRUE(broker_->closed.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(broker_->closed_regions, std::vector<uint64_t>{100});
}

TEST_F(ClientTest, RegionKeepsTheSessionOpen) {
  std::unique_ptr<Client> client = Connect();
  auto region = client->CreateHostRegion(64);
  ASSERT_TRUE(region.ok());
  client.reset();
  EXPECT_FALSE(broker_->closed.HasBeenNotified());
  *region = HostRegion();
  EXPECT_TRUE(broker_->closed.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST_F(ClientTest, BrokersRefusalIsPassedOn) {
  const auto region = Connect()->CreateHostRegion(13);
  EXPECT_EQ(region.status(), absl::ResourceExhaustedError("quota: expected less"));
}

// Whether the answer comes while the caller polls or while it sleeps.
TEST_F(ClientTest, CallsThatPollGetTheirAnswersAndErrors) {
  for (const absl::Duration spin : {absl::ZeroDuration(), absl::Microseconds(100), absl::InfiniteDuration()}) {
    const auto client = Client::Connect("unix:" + socket_, {.open_session = false, .spin = spin});
    ASSERT_TRUE(client.ok()) << client.status();
    for (const uint32_t priority : {0u, 1u}) {
      const auto response = (*client)->Dense(Call("abc"), {.priority = priority});
      ASSERT_TRUE(response.ok()) << response.status();
      EXPECT_EQ(response->d(), "abc");
      EXPECT_EQ((*client)->Dense({}, {.priority = priority}).status(),
                absl::InvalidArgumentError("a: expected elements"));
    }
    const auto late = (*client)->Dense(Call("abc"), {.timeout = absl::Milliseconds(1), .priority = 3});
    EXPECT_EQ(late.status().code(), absl::StatusCode::kDeadlineExceeded);
  }
}

class Babbler final : public v1::Gemm::WithRawCallbackMethod_Run<v1::Gemm::Service> {
 public:
  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                grpc::ByteBuffer* response) override {
    const grpc::Slice nonsense("\xff\xff\xff");
    *response = grpc::ByteBuffer(&nonsense, 1);
    auto* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

TEST_F(ClientTest, AnAnswerThatIsNoneIsAnError) {
  const std::string socket = socket_ + ".babble";
  Babbler babbler;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  builder.RegisterService(&babbler);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  for (const absl::Duration spin : {absl::ZeroDuration(), absl::Seconds(20)}) {
    const auto client = Client::Connect("unix:" + socket, {.open_session = false, .spin = spin});
    ASSERT_TRUE(client.ok()) << client.status();
    EXPECT_EQ((*client)->Dense(Call("abc")).status().code(), absl::StatusCode::kInternal);
  }
  server->Shutdown();
  unlink(socket.c_str());
}

TEST_F(ClientTest, MoreThreadsThanMayPollAllGetTheirAnswers) {
  const auto client = Client::Connect("unix:" + socket_, {.open_session = false, .spin = absl::Milliseconds(5)});
  ASSERT_TRUE(client.ok()) << client.status();
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 2u * static_cast<unsigned>(UsableCores()) + 2; ++i) {
    threads.emplace_back([&client, i] {
      for (int call = 0; call < 20; ++call) {
        const std::string bytes = absl::StrCat(i, ".", call);
        const auto response = (*client)->Dense(Call(bytes));
        EXPECT_TRUE(response.ok() && response->d() == bytes) << response.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(ClientTest, AsynchronousCallsAnswerByCallback) {
  const std::unique_ptr<Client> client = Connect();
  absl::BlockingCounter left(20);
  for (int i = 0; i < 20; ++i) {
    client->RunAsync(ToRequest(Call(absl::StrCat("m", i))), {}, [&left, i](absl::StatusOr<v1::RunResponse> response) {
      EXPECT_TRUE(response.ok() && response->d() == absl::StrCat("m", i));
      left.DecrementCount();
    });
  }
  left.Wait();
}

TEST_F(ClientTest, StreamMatchesAnswersThatComeOutOfOrder) {
  const std::unique_ptr<Client> client = Connect();
  const std::unique_ptr<RunStream> stream = client->OpenStream();
  absl::Mutex mutex;
  std::map<int, std::string> results;
  for (int i = 0; i < 9; ++i) {
    const absl::Status sent =
        stream->Submit(ToRequest(Call(absl::StrCat(i))), [&, i](absl::StatusOr<v1::RunResponse> response) {
          const absl::MutexLock lock(&mutex);
          results[i] = response.ok() ? response->d() : response.status().ToString();
        });
    ASSERT_TRUE(sent.ok()) << sent;
  }
  EXPECT_TRUE(stream->Close().ok());
  ASSERT_EQ(results.size(), 9u);
  for (const auto& [i, result] : results) EXPECT_EQ(result, absl::StrCat(i));
}

TEST_F(ClientTest, StreamGoesOnAfterAFailedOperation) {
  const std::unique_ptr<Client> client = Connect();
  const std::unique_ptr<RunStream> stream = client->OpenStream();
  absl::Status failed;
  bool succeeded = false;
  ASSERT_TRUE(stream->Submit(ToRequest(DenseCall{}), [&](auto response) { failed = response.status(); }).ok());
  ASSERT_TRUE(stream->Submit(ToRequest(Call("y")), [&](auto response) { succeeded = response.ok(); }).ok());
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(failed, absl::InvalidArgumentError("a: expected elements"));
  EXPECT_TRUE(succeeded);
}

TEST_F(ClientTest, BrokenStreamAnswersEverything) {
  const std::unique_ptr<Client> client = Connect();
  const std::unique_ptr<RunStream> stream = client->OpenStream();
  v1::RunRequest breaking = ToRequest(Call("z"));
  breaking.set_priority(3);
  absl::Status result;
  ASSERT_TRUE(stream->Submit(breaking, [&](auto response) { result = response.status(); }).ok());
  EXPECT_EQ(stream->Close(), absl::UnavailableError("broken"));
  EXPECT_EQ(result, absl::UnavailableError("broken"));
  EXPECT_FALSE(stream->Submit(ToRequest(Call("z")), [](auto) {}).ok());
}

TEST_F(ClientTest, FullStreamRefusesAtOnce) {
  const std::unique_ptr<Client> client = Connect();
  const std::unique_ptr<RunStream> stream = client->OpenStream({.max_in_flight = 1});
  ASSERT_TRUE(stream->Submit(ToRequest(Call("1")), [](auto) {}).ok());  // Waits for its pair.
  EXPECT_EQ(stream->Submit(ToRequest(Call("2")), [](auto) {}).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ClientTest, TensorsAreWrittenInChunksAndReadBack) {
  const std::unique_ptr<Client> client = Connect();
  const std::string bytes(kTensorChunkBytes * 2 + 17, 'q');
  ASSERT_TRUE(client->WriteTensor(1, Inline<char>(bytes, DType::kU8, {}).bytes).ok());
  const auto again = client->ReadTensor(1);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, bytes);
}

TEST_F(ClientTest, CallsOfUnknownServicesAreUnimplemented) {
  EXPECT_EQ(Connect()->GetInfo().status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(ClientTest, HealthIsReadWithoutGeneratedCode) {
  const auto channel = MakeChannel("unix:" + socket_, {});
  ASSERT_TRUE(channel.ok());
  EXPECT_EQ(CheckHealth(*channel, "", absl::Seconds(5)).value(), "SERVING");
  server_->GetHealthCheckService()->SetServingStatus(false);
  EXPECT_EQ(CheckHealth(*channel, "", absl::Seconds(5)).value(), "NOT_SERVING");
  EXPECT_EQ(CheckHealth(*channel, "gemmd.v1.Gemm/none", absl::Seconds(5)).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ClientTest, WaitingForHealthEndsAtItsDeadline) {
  const auto channel = MakeChannel("unix:" + socket_, {});
  server_->GetHealthCheckService()->SetServingStatus(false);
  EXPECT_EQ(WaitUntilServing(*channel, "", absl::Milliseconds(120)).code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace gemmd
