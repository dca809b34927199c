// SPDX-License-Identifier: Apache-2.0
#include "server/broker.h"

#include "proto/broker.h"
#include "proto/message_socket.h"
#include "proto/unique_fd.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <unordered_map>
#include <utility>

namespace gemmd {
namespace {

constexpr int kBacklog = 128;  // Connections that the kernel holds between two rounds of the loop.
constexpr mode_t kSocketMode = 0660;
constexpr int kEventsPerRound = 64;

// What an epoll event speaks of; larger numbers are connections.
constexpr uint64_t kListenerToken = 0;
constexpr uint64_t kMailboxToken = 1;
constexpr uint64_t kFirstConnection = 2;

BrokerReply ReplyOf(const absl::Status& status) {
  BrokerReply reply;
  reply.code = static_cast<uint32_t>(status.code());
  status.message().copy(reply.message, sizeof(reply.message) - 1);
  return reply;
}

BrokerReply ReplyOf(const absl::StatusOr<uint64_t>& region_id) {
  BrokerReply reply = ReplyOf(region_id.status());
  if (region_id.ok()) reply.region_id = *region_id;
  return reply;
}

BrokerReply ReplyOf(const absl::StatusOr<PoolRegion>& pool) {
  BrokerReply reply = ReplyOf(pool.status());
  if (!pool.ok()) return reply;
  reply.region_id = pool->region_id;
  pool->device.copy(reply.gpu, sizeof(reply.gpu) - 1);
  return reply;
}

absl::Status CheckDescriptors(const ReceivedMessage& message, int expected) {
  if (message.descriptor_count == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("message: expected ", expected, " descriptors, got ", message.descriptor_count));
}

absl::StatusOr<BrokerRequest> ParseRequest(const ReceivedMessage& message) {
  BrokerRequest request;
  if (message.bytes.size() != sizeof(request)) {
    return absl::InvalidArgumentError(
        absl::StrCat("message: expected ", sizeof(request), " bytes, got ", message.bytes.size()));
  }
  std::memcpy(&request, message.bytes.data(), sizeof(request));
  if (request.version != kBrokerVersion) {
    return absl::InvalidArgumentError(absl::StrCat("version: expected ", kBrokerVersion, ", got ", request.version));
  }
  if (request.reserved != 0) return absl::InvalidArgumentError("reserved: expected 0");
  if (strnlen(request.gpu, sizeof(request.gpu)) == sizeof(request.gpu)) {
    return absl::InvalidArgumentError("gpu: expected a terminating NUL");
  }
  return request;
}

// Says why and hangs up. Reading on until the socket is empty spares the peer a connection reset, which would hide the
// reply.
void Refuse(UniqueFd socket, const absl::Status& status) {
  (void)SendStruct(socket.get(), ReplyOf(status));
  shutdown(socket.get(), SHUT_RDWR);
  // Bounded by what the peer sent before the shutdown.
  while (ReceiveMessage(socket.get()).ok()) continue;
}

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

int Bind(int socket, const std::string& path) {
  const sockaddr_un address = AddressOf(path);
  return bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

// Removes the socket file of a process that is gone.
absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) return absl::OkStatus();
  if (!S_ISSOCK(status.st_mode)) return absl::AlreadyExistsError(absl::StrCat(path, " exists and is not a socket"));
  const UniqueFd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_un address = AddressOf(path);
  const int connected = connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  if (connected == 0 || errno != ECONNREFUSED) {
    return absl::AlreadyExistsError(absl::StrCat("somebody listens at ", path));
  }
  unlink(path.c_str());
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Listen(const std::string& path) {
  if (path.empty() || path.size() >= sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("broker path: expected 1 to ", sizeof(sockaddr_un::sun_path) - 1, " bytes, got ", path.size()));
  }
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid()) return absl::ErrnoToStatus(errno, "socket");
  int bound = Bind(listener.get(), path);
  if (bound != 0 && errno == EADDRINUSE) {
    if (absl::Status status = RemoveStaleSocket(path); !status.ok()) return status;
    bound = Bind(listener.get(), path);
  }
  if (bound != 0) return absl::ErrnoToStatus(errno, absl::StrCat("bind ", path));
  // Before listen: until then nobody can connect, whatever the umask was.
  if (chmod(path.c_str(), kSocketMode) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("chmod ", path));
  if (listen(listener.get(), kBacklog) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("listen ", path));
  return listener;
}

// Replies on their way from the workers' threads to the broker's. Outlives the broker while callbacks hold it.
class Mailbox {
 public:
  struct Letter {
    uint64_t connection = 0;
    BrokerReply reply;
    UniqueFd fd;  // Goes with the reply.
  };

  explicit Mailbox(UniqueFd event) : event_(std::move(event)) {}
  int event() const { return event_.get(); }

  void Post(uint64_t connection, const BrokerReply& reply, UniqueFd fd = UniqueFd()) {
    {
      absl::MutexLock lock(&mutex_);
      letters_.push_back({connection, reply, std::move(fd)});
    }
    Wake();
  }
  void Wake() { eventfd_write(event_.get(), 1); }

  std::vector<Letter> Take() {
    eventfd_t count = 0;
    eventfd_read(event_.get(), &count);
    absl::MutexLock lock(&mutex_);
    return std::exchange(letters_, {});
  }

 private:
  const UniqueFd event_;
  absl::Mutex mutex_;
  std::vector<Letter> letters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

// Everything here belongs to the broker's thread, except Stop and connections.
class BrokerLoop {
 public:
  struct Descriptors {
    UniqueFd listener;
    UniqueFd epoll;
    UniqueFd event;
    UniqueFd spare;
  };

  BrokerLoop(BrokerOptions options, SessionRegistry& sessions, RegionRegistry& regions, Descriptors descriptors)
      : options_(std::move(options)),
        sessions_(sessions),
        regions_(regions),
        listener_(std::move(descriptors.listener)),
        epoll_(std::move(descriptors.epoll)),
        mailbox_(std::make_shared<Mailbox>(std::move(descriptors.event))),
        spare_(std::move(descriptors.spare)) {
    Watch(EPOLL_CTL_ADD, listener_.get(), kListenerToken, EPOLLIN);
    Watch(EPOLL_CTL_ADD, mailbox_->event(), kMailboxToken, EPOLLIN);
  }

  ~BrokerLoop() { unlink(options_.path.c_str()); }

  void Run() {
    std::array<epoll_event, kEventsPerRound> events;
    while (!stopping_.load(std::memory_order_acquire)) {
      const int count = epoll_wait(epoll_.get(), events.data(), kEventsPerRound, -1);
      for (int i = 0; i < count; ++i) Handle(events[static_cast<size_t>(i)]);
    }
    while (!connections_.empty()) Close(connections_.begin()->first, SessionEnd::kShutdown);
  }

  void Stop() {
    stopping_.store(true, std::memory_order_release);
    mailbox_->Wake();
  }

  size_t connections() const { return connection_count_.load(std::memory_order_relaxed); }

 private:
  struct Connection {
    UniqueFd socket;
    Identity identity;
    std::shared_ptr<Session> session;  // Null before the hello.
  };

  void Watch(int operation, int fd, uint64_t token, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = token;
    epoll_ctl(epoll_.get(), operation, fd, &event);
  }

  void Handle(const epoll_event& event) {
    const uint64_t token = event.data.u64;
    if (token == kListenerToken) {
      Accept();
      return;
    }
    if (token == kMailboxToken) {
      for (const Mailbox::Letter& letter : mailbox_->Take()) Deliver(letter);
      return;
    }
    // An earlier event of this round may have closed it.
    if (!connections_.contains(token)) return;
    if ((event.events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) {
      Close(token);
      return;
    }
    ReadRequest(token);
  }

  void Accept() {
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (errno == EMFILE || errno == ENFILE) RefuseForLackOfDescriptors();
      return;
    }
    ucred peer{};
    socklen_t length = sizeof(peer);
    if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
    if (absl::Status status = Admit(peer.uid); !status.ok()) {
      Refuse(std::move(socket), status);
      return;
    }
    const uint64_t id = next_connection_++;
    Watch(EPOLL_CTL_ADD, socket.get(), id, EPOLLIN | EPOLLRDHUP);
    ++connections_of_[peer.uid];
    connections_.emplace(id, Connection{std::move(socket), Identity{.remote = false, .uid = peer.uid}, nullptr});
    connection_count_.fetch_add(1, std::memory_order_relaxed);
  }

  absl::Status Admit(uid_t uid) const {
    if (options_.allowed_uids.has_value()) {
      const std::vector<uid_t>& allowed = *options_.allowed_uids;
      if (std::find(allowed.begin(), allowed.end(), uid) == allowed.end()) {
        return absl::PermissionDeniedError("broker: this user is not in --allow_uids");
      }
    }
    if (connections_.size() >= options_.quotas.broker_connections) {
      return absl::ResourceExhaustedError(
          absl::StrCat("broker: expected at most ", options_.quotas.broker_connections, " connections"));
    }
    const auto found = connections_of_.find(uid);
    if (found != connections_of_.end() && found->second >= options_.quotas.broker_connections_per_uid) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "broker: expected at most ", options_.quotas.broker_connections_per_uid, " connections of one user"));
    }
    return absl::OkStatus();
  }

  // Out of descriptors, the connection would stay in the backlog and wake the loop for ever. Giving up the spare one
  // makes room to take it and say so.
  void RefuseForLackOfDescriptors() {
    spare_.Reset();
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) Refuse(std::move(socket), absl::ResourceExhaustedError("broker: out of descriptors"));
    spare_.Reset(open("/dev/null", O_RDONLY | O_CLOEXEC));
  }

  // One message, so that no connection keeps the others waiting.
  void ReadRequest(uint64_t id) {
    absl::StatusOr<ReceivedMessage> message = ReceiveMessage(connections_.at(id).socket.get());
    if (absl::IsDeadlineExceeded(message.status())) return;
    if (absl::IsInvalidArgument(message.status())) {
      Reply(id, ReplyOf(message.status()));
      return;
    }
    if (!message.ok()) {
      Close(id);
      return;
    }
    const absl::StatusOr<BrokerRequest> request = ParseRequest(*message);
    if (!request.ok()) {
      Reply(id, ReplyOf(request.status()));
      return;
    }
    Dispatch(id, *request, *std::move(message));
  }

  void Dispatch(uint64_t id, const BrokerRequest& request, ReceivedMessage message) {
    const bool greeted = connections_.at(id).session != nullptr;
    absl::Status status;
    switch (request.type) {
      case BrokerRequestType::kHello:
        status = greeted ? absl::FailedPreconditionError("hello: the session is open already")
                         : CheckDescriptors(message, 0);
        if (status.ok()) status = Hello(id, request);
        break;
      case BrokerRequestType::kRegisterHost:
      case BrokerRequestType::kRegisterDevice:
        status = greeted ? CheckDescriptors(message, 1) : NoHello();
        if (status.ok()) status = Register(id, request, std::move(message.fd));
        break;
      case BrokerRequestType::kRegisterDeviceIpc:
        status = greeted ? CheckDescriptors(message, 0) : NoHello();
        if (status.ok()) status = Register(id, request, UniqueFd());
        break;
      case BrokerRequestType::kCreatePool:
        status = greeted ? CheckDescriptors(message, 0) : NoHello();
        if (status.ok()) CreatePool(id, request);
        break;
      case BrokerRequestType::kCloseRegion:
        status = greeted ? CheckDescriptors(message, 0) : NoHello();
        if (status.ok()) CloseRegion(id, request.region_id);
        break;
      default:
        status = absl::InvalidArgumentError(
            absl::StrCat("type: expected a known request, got ", static_cast<uint32_t>(request.type)));
    }
    if (!status.ok()) Reply(id, ReplyOf(status));
  }

  static absl::Status NoHello() { return absl::FailedPreconditionError("hello: expected it as the first request"); }

  absl::Status Hello(uint64_t id, const BrokerRequest& request) {
    const size_t length = strnlen(request.client_name, sizeof(request.client_name));
    if (length == sizeof(request.client_name)) {
      return absl::InvalidArgumentError("client_name: expected a terminating NUL");
    }
    Connection& connection = connections_.at(id);
    absl::StatusOr<std::shared_ptr<Session>> session =
        sessions_.Open(connection.identity, absl::string_view(request.client_name, length));
    if (!session.ok()) return session.status();
    connection.session = *std::move(session);
    BrokerReply reply;
    reply.session_id = connection.session->id();
    std::copy(connection.session->secret().begin(), connection.session->secret().end(), reply.secret);
    Reply(id, reply);
    return absl::OkStatus();
  }

  absl::Status Register(uint64_t id, const BrokerRequest& request, UniqueFd fd) {
    if (request.writable > 1) {
      return absl::InvalidArgumentError(absl::StrCat("writable: expected 0 or 1, got ", request.writable));
    }
    BeginRequest(id);
    const std::shared_ptr<Session>& session = connections_.at(id).session;
    const RegionExtent extent{request.byte_size, request.writable == 1};
    auto done = [mailbox = mailbox_, id](const absl::StatusOr<uint64_t>& region_id) {
      mailbox->Post(id, ReplyOf(region_id));
    };
    if (request.type == BrokerRequestType::kRegisterDevice) {
      regions_.RegisterDevice(session, extent, request.gpu, std::move(fd), std::move(done));
    } else if (request.type == BrokerRequestType::kRegisterDeviceIpc) {
      regions_.RegisterDeviceIpc(session, extent, request.gpu, request.ipc, std::move(done));
    } else {
      regions_.RegisterHost(session, extent, std::move(fd), std::move(done));
    }
    return absl::OkStatus();
  }

  void CreatePool(uint64_t id, const BrokerRequest& request) {
    BeginRequest(id);
    regions_.CreatePool(connections_.at(id).session, request.byte_size, request.gpu,
                        [mailbox = mailbox_, id](absl::StatusOr<PoolRegion> pool) {
                          const BrokerReply reply = ReplyOf(pool);
                          mailbox->Post(id, reply, pool.ok() ? std::move(pool->fd) : UniqueFd());
                        });
  }

  void CloseRegion(uint64_t id, uint64_t region_id) {
    BeginRequest(id);
    regions_.Close(*connections_.at(id).session, region_id,
                   [mailbox = mailbox_, id](const absl::Status& status) { mailbox->Post(id, ReplyOf(status)); });
  }

  // Until its reply is delivered, only the end of the connection is watched.
  void BeginRequest(uint64_t id) { Watch(EPOLL_CTL_MOD, connections_.at(id).socket.get(), id, EPOLLRDHUP); }

  void Deliver(const Mailbox::Letter& letter) {
    const auto found = connections_.find(letter.connection);
    if (found == connections_.end()) return;
    Watch(EPOLL_CTL_MOD, found->second.socket.get(), letter.connection, EPOLLIN | EPOLLRDHUP);
    Reply(letter.connection, letter.reply, letter.fd.get());
  }

  // A client that lets replies pile up until the socket is full has broken the protocol.
  void Reply(uint64_t id, const BrokerReply& reply, int fd = -1) {
    if (!SendStruct(connections_.at(id).socket.get(), reply, fd).ok()) Close(id, SessionEnd::kCutOff);
  }

  void Close(uint64_t id, SessionEnd end = SessionEnd::kClient) {
    const auto found = connections_.find(id);
    const Connection connection = std::move(found->second);
    connections_.erase(found);
    connection_count_.fetch_sub(1, std::memory_order_relaxed);
    const auto count = connections_of_.find(connection.identity.uid);
    if (--count->second == 0) connections_of_.erase(count);
    if (connection.session != nullptr) sessions_.Close(connection.session->id(), end);
  }

  const BrokerOptions options_;
  SessionRegistry& sessions_;
  RegionRegistry& regions_;
  const UniqueFd listener_;
  const UniqueFd epoll_;
  const std::shared_ptr<Mailbox> mailbox_;
  UniqueFd spare_;
  std::unordered_map<uint64_t, Connection> connections_;
  absl::flat_hash_map<uid_t, uint32_t> connections_of_;
  uint64_t next_connection_ = kFirstConnection;
  std::atomic<size_t> connection_count_{0};
  std::atomic<bool> stopping_{false};
};

absl::StatusOr<std::unique_ptr<Broker>> Broker::Start(BrokerOptions options, SessionRegistry& sessions,
                                                      RegionRegistry& regions) {
  BrokerLoop::Descriptors descriptors;
  absl::StatusOr<UniqueFd> listener = Listen(options.path);
  if (!listener.ok()) return listener.status();
  descriptors.listener = *std::move(listener);
  descriptors.epoll.Reset(epoll_create1(EPOLL_CLOEXEC));
  descriptors.event.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  descriptors.spare.Reset(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!descriptors.epoll.valid() || !descriptors.event.valid() || !descriptors.spare.valid()) {
    return absl::ResourceExhaustedError("broker: out of descriptors");
  }
  auto loop = std::make_unique<BrokerLoop>(std::move(options), sessions, regions, std::move(descriptors));
  return std::unique_ptr<Broker>(new Broker(std::move(loop)));
}

Broker::Broker(std::unique_ptr<BrokerLoop> loop) : loop_(std::move(loop)), thread_([this] { loop_->Run(); }) {}

Broker::~Broker() {
  loop_->Stop();
  thread_.join();
}

size_t Broker::connections() const { return loop_->connections(); }

}  // namespace gemmd
