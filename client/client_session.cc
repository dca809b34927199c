// SPDX-License-Identifier: Apache-2.0
#include "client/client_session.h"

#include "client/grpc_status.h"
#include "proto/bearer_token.h"
#include "proto/message_socket.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <utility>

namespace gemmd {

// Reads the one event of Sessions.Open and keeps the call open until it is destroyed.
class SessionStream final : public grpc::ClientReadReactor<v1::SessionEvent> {
 public:
  SessionStream(const std::shared_ptr<grpc::Channel>& channel, const ClientSession& session,
                const std::string& client_name)
      : stub_(v1::Sessions::NewStub(channel)) {
    session.Authorize(&context_);
    request_.set_client_name(client_name);
    stub_->async()->Open(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }

  ~SessionStream() override {
    context_.TryCancel();
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
  }

  absl::StatusOr<v1::SessionEvent> WaitForEvent(absl::Duration timeout) {
    const absl::MutexLock lock(&mutex_);
    const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return opened_ || done_; };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&settled), timeout)) {
      return absl::DeadlineExceededError(absl::StrCat("session: no answer in ", absl::FormatDuration(timeout)));
    }
    if (!opened_) return status_.ok() ? absl::UnavailableError("session: closed by the daemon") : status_;
    return event_;
  }

  void OnReadDone(bool ok) override {
    {
      const absl::MutexLock lock(&mutex_);
      if (ok) opened_ = true;
    }
    if (ok) StartRead(&ignored_);
  }

  void OnDone(const grpc::Status& status) override {
    const absl::MutexLock lock(&mutex_);
    status_ = FromGrpc(status);
    done_ = true;
  }

 private:
  const std::unique_ptr<v1::Sessions::Stub> stub_;
  grpc::ClientContext context_;
  v1::OpenSessionRequest request_;
  v1::SessionEvent event_;    // Written by gRPC before `opened_`, never after.
  v1::SessionEvent ignored_;  // Later events, if a later daemon sends any.
  absl::Mutex mutex_;
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

namespace {

absl::StatusOr<UniqueFd> ConnectSocket(const std::string& path, absl::Duration timeout) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("broker: expected a path of at most ", sizeof(address.sun_path) - 1, " bytes, got ", path.size()));
  }
  std::copy(path.begin(), path.end(), address.sun_path);
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return absl::ErrnoToStatus(errno, "broker: socket");
  const timeval wait = absl::ToTimeval(timeout);
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
  setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(absl::StrCat("broker: cannot connect to ", path, ": ", std::strerror(errno)));
  }
  return socket;
}

BrokerRequest RegistrationOf(BrokerRequestType type, uint64_t byte_size, Access access, absl::string_view gpu) {
  BrokerRequest request;
  request.type = type;
  request.byte_size = byte_size;
  request.writable = access == Access::kReadWrite ? 1 : 0;
  gpu.copy(request.gpu, sizeof(request.gpu) - 1);
  return request;
}

}  // namespace

ClientSession::ClientSession(const SessionOptions& options) : token_(options.token) {}

ClientSession::~ClientSession() = default;

std::shared_ptr<ClientSession> ClientSession::Anonymous(const SessionOptions& options) {
  return std::shared_ptr<ClientSession>(new ClientSession(options));
}

absl::StatusOr<std::shared_ptr<ClientSession>> ClientSession::OpenAtBroker(const std::string& socket_path,
                                                                           const SessionOptions& options) {
  absl::StatusOr<UniqueFd> socket = ConnectSocket(socket_path, options.timeout);
  if (!socket.ok()) return socket.status();
  const std::shared_ptr<ClientSession> session = Anonymous(options);
  {
    const absl::MutexLock lock(&session->mutex_);
    session->socket_ = *std::move(socket);
  }
  BrokerRequest hello;
  hello.type = BrokerRequestType::kHello;
  options.client_name.copy(hello.client_name, kClientNameBytes - 1);
  const absl::StatusOr<Answer> answer = session->Ask(hello, -1);
  if (!answer.ok()) return answer.status();
  session->id_ = answer->reply.session_id;
  session->id_text_ = absl::StrCat(session->id_);
  session->secret_ =
      absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(answer->reply.secret), kSecretBytes));
  session->has_broker_ = true;
  return session;
}

absl::StatusOr<std::shared_ptr<ClientSession>> ClientSession::OpenOnChannel(
    const std::shared_ptr<grpc::Channel>& channel, const SessionOptions& options) {
  const std::shared_ptr<ClientSession> session = Anonymous(options);
  auto stream = std::make_unique<SessionStream>(channel, *session, options.client_name);
  const absl::StatusOr<v1::SessionEvent> event = stream->WaitForEvent(options.timeout);
  if (!event.ok()) return event.status();
  session->id_ = event->session_id();
  session->id_text_ = absl::StrCat(event->session_id());
  session->secret_ = event->secret();
  session->stream_ = std::move(stream);
  return session;
}

void ClientSession::Authorize(grpc::ClientContext* context) const {
  if (!token_.empty()) context->AddMetadata(kAuthorizationMetadata, absl::StrCat(kBearerPrefix, token_));
  if (secret_.empty()) return;
  context->AddMetadata(kSessionMetadata, id_text_);
  context->AddMetadata(kSecretMetadata, secret_);
}

absl::StatusOr<uint64_t> ClientSession::RegisterHost(int fd, uint64_t byte_size, Access access) {
  return Register(RegistrationOf(BrokerRequestType::kRegisterHost, byte_size, access, ""), fd);
}

absl::StatusOr<uint64_t> ClientSession::RegisterDevice(int fd, uint64_t byte_size, Access access,
                                                       absl::string_view gpu) {
  return Register(RegistrationOf(BrokerRequestType::kRegisterDevice, byte_size, access, gpu), fd);
}

absl::StatusOr<uint64_t> ClientSession::RegisterDeviceIpc(const IpcMemory& ipc, uint64_t byte_size, Access access,
                                                          absl::string_view gpu) {
  BrokerRequest request = RegistrationOf(BrokerRequestType::kRegisterDeviceIpc, byte_size, access, gpu);
  request.ipc = ipc;
  return Register(request, -1);
}

absl::StatusOr<uint64_t> ClientSession::Register(const BrokerRequest& request, int fd) {
  const absl::StatusOr<Answer> answer = Ask(request, fd);
  if (!answer.ok()) return answer.status();
  return answer->reply.region_id;
}

absl::StatusOr<CreatedPool> ClientSession::CreatePool(uint64_t byte_size, absl::string_view device) {
  absl::StatusOr<Answer> answer =
      Ask(RegistrationOf(BrokerRequestType::kCreatePool, byte_size, Access::kReadWrite, device), -1);
  if (!answer.ok()) return answer.status();
  if (!answer->fd.valid()) return absl::InternalError("broker: expected a descriptor of the pool, got none");
  const BrokerReply& reply = answer->reply;
  return CreatedPool{reply.region_id, std::string(reply.gpu, strnlen(reply.gpu, sizeof(reply.gpu))),
                     std::move(answer->fd)};
}

absl::Status ClientSession::CloseRegion(uint64_t region_id) {
  BrokerRequest request;
  request.type = BrokerRequestType::kCloseRegion;
  request.region_id = region_id;
  return Ask(request, -1).status();
}

absl::StatusOr<ClientSession::Answer> ClientSession::Ask(const BrokerRequest& request, int fd) {
  const absl::MutexLock lock(&mutex_);
  if (!socket_.valid()) {
    return absl::FailedPreconditionError(
        "broker: this session has no connection to it (memory is shared on one machine)");
  }
  absl::Status sent = SendStruct(socket_.get(), request, fd);
  // A broker that refuses says why before it closes the socket, and perhaps before it gets the request.
  const bool may_have_said_why = absl::IsUnavailable(sent);
  absl::StatusOr<ReceivedMessage> message = sent.ok() || may_have_said_why ? ReceiveMessage(socket_.get()) : sent;
  if (message.ok() && message->bytes.size() != sizeof(BrokerReply)) {
    message = absl::InternalError(
        absl::StrCat("broker: expected a reply of ", sizeof(BrokerReply), " bytes, got ", message->bytes.size()));
  }
  if (!message.ok()) {
    socket_.Reset();
    return message.status();
  }
  BrokerReply reply;
  std::memcpy(&reply, message->bytes.data(), sizeof(reply));
  if (reply.code == 0) return Answer{reply, std::move(message->fd)};
  const absl::string_view text(reply.message, strnlen(reply.message, sizeof(reply.message)));
  return absl::Status(static_cast<absl::StatusCode>(reply.code), text);
}

}  // namespace gemmd
