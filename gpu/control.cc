// SPDX-License-Identifier: Apache-2.0
#include "gpu/control.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

template <size_t kSize>
void CopyText(absl::string_view text, char (&destination)[kSize]) {
  const size_t length = std::min(text.size(), kSize - 1);
  std::copy_n(text.data(), length, destination);
  destination[length] = '\0';
}

ControlReply MakeReply(uint64_t request_id, const absl::Status& status) {
  ControlReply reply;
  reply.request_id = request_id;
  reply.code = static_cast<uint32_t>(status.code());
  CopyText(status.message(), reply.message);
  return reply;
}

}  // namespace

void Control::Outbox::Post(const ControlReply& reply) {
  absl::MutexLock lock(&mutex_);
  replies_.push_back(reply);
  Ring();
}

void Control::Outbox::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  Ring();
}

void Control::Outbox::Ring() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the event is readable anyway.
  if (write(event_.get(), &one, sizeof(one)) < 0) return;
}

std::vector<ControlReply> Control::Outbox::TakeReplies() {
  uint64_t count = 0;
  absl::MutexLock lock(&mutex_);
  if (!stopped_ && read(event_.get(), &count, sizeof(count)) < 0) return {};
  return std::exchange(replies_, {});
}

bool Control::Outbox::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

// Answers requests to make kernels ready, one after another, on a thread of its own.
class Control::Preparer {
 public:
  Preparer(Device& device, std::shared_ptr<Outbox> outbox)
      : device_(device), outbox_(std::move(outbox)), thread_([this] { Run(); }) {}
  ~Preparer() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  void Add(const ControlRequest& request) {
    absl::MutexLock lock(&mutex_);
    waiting_.push_back(request);
  }

 private:
  void Run() {
    pthread_setname_np(pthread_self(), "gemmd-prepare");
    const auto due = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_ || !waiting_.empty(); };
    while (true) {
      ControlRequest request;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(&due));
        if (stopping_) return;
        request = waiting_.front();
        waiting_.pop_front();
      }
      const absl::StatusOr<PrepareResult> prepared = device_.Prepare(request.shape);
      ControlReply reply = MakeReply(request.request_id, prepared.status());
      if (prepared.ok()) {
        reply.kernels_ready = prepared->kernels_ready;
        reply.kernels_compiled = prepared->kernels_compiled;
      }
      outbox_->Post(reply);
    }
  }

  Device& device_;
  const std::shared_ptr<Outbox> outbox_;
  absl::Mutex mutex_;
  std::deque<ControlRequest> waiting_ ABSL_GUARDED_BY(mutex_);  // At most as many as the link sends unanswered.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<Control>> Control::Create(UniqueFd socket, Device& device, RegionTable& regions,
                                                         Worker& worker, const WorkerCounters& counters) {
  UniqueFd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  return std::unique_ptr<Control>(new Control(std::move(socket), std::move(event), device, regions, worker, counters));
}

Control::Control(UniqueFd socket, UniqueFd event, Device& device, RegionTable& regions, Worker& worker,
                 const WorkerCounters& counters)
    : socket_(std::move(socket)),
      outbox_(std::make_shared<Outbox>(std::move(event))),
      device_(device),
      regions_(regions),
      worker_(worker),
      counters_(counters),
      preparer_(std::make_unique<Preparer>(device, outbox_)) {}

Control::~Control() = default;

absl::Status Control::SendHello() {
  const DeviceTraits& traits = device_.traits();
  ControlReply hello;
  hello.memory_bytes = traits.memory_bytes;
  hello.cores = traits.cores;
  hello.mps = traits.mps ? 1 : 0;
  CopyText(traits.device, hello.device);
  CopyText(traits.name, hello.name);
  return SendStruct(socket_.get(), hello, counters_.fd());
}

void Control::Stop() { outbox_->Stop(); }

absl::Status Control::Serve() {
  while (!outbox_->stopped()) {
    pollfd events[] = {{socket_.get(), POLLIN, 0}, {outbox_->event(), POLLIN, 0}};
    if (poll(events, 2, -1) < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
    absl::Status status = SendReplies();
    if (status.ok() && events[0].revents != 0) {
      absl::StatusOr<ReceivedMessage> message = ReceiveMessage(socket_.get());
      status = message.ok() ? ServeOne(*std::move(message)) : message.status();
    }
    if (absl::IsUnavailable(status)) return absl::OkStatus();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Control::SendReplies() {
  for (const ControlReply& reply : outbox_->TakeReplies()) {
    if (absl::Status status = SendStruct(socket_.get(), reply); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Control::ServeOne(ReceivedMessage message) {
  ControlRequest request;
  if (message.bytes.size() != sizeof(request)) {
    return absl::InvalidArgumentError(
        absl::StrCat("control request: expected ", sizeof(request), " bytes, got ", message.bytes.size()));
  }
  std::memcpy(&request, message.bytes.data(), sizeof(request));
  if (request.version != kControlVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("control version: expected ", kControlVersion, ", got ", request.version));
  }
  absl::Status status;
  UniqueFd fd;
  switch (request.type) {
    case ControlRequestType::kAttachRing:
      status = AttachRing(std::move(message.fd));
      break;
    case ControlRequestType::kMapRegion:
      status = MapRegion(request, std::move(message.fd));
      break;
    case ControlRequestType::kCloseRegion:
      status = CloseRegion(request);
      if (status.ok()) return status;  // The reply comes when the last holder has gone.
      break;
    case ControlRequestType::kAllocate: {
      absl::StatusOr<UniqueFd> allocated = Allocate(request);
      status = allocated.status();
      if (allocated.ok()) fd = *std::move(allocated);
      break;
    }
    case ControlRequestType::kPrepare:
      preparer_->Add(request);
      return absl::OkStatus();  // The reply comes when the kernels are ready.
    case ControlRequestType::kSetLogLevel:
      status = SetLogLevel(request.log_level);
      break;
    default:
      status = absl::UnimplementedError(
          absl::StrCat("control request: expected a known type, got ", static_cast<uint32_t>(request.type)));
  }
  return SendStruct(socket_.get(), MakeReply(request.request_id, status), fd.get());
}

absl::Status Control::SetLogLevel(uint8_t level) {
  if (level >= spdlog::level::n_levels) {
    return absl::InvalidArgumentError(
        absl::StrCat("log_level: expected less than ", static_cast<int>(spdlog::level::n_levels), ", got ", level));
  }
  const auto value = static_cast<spdlog::level::level_enum>(level);
  spdlog::set_level(value);
  spdlog::info("log level: {}", spdlog::level::to_string_view(value));
  return absl::OkStatus();
}

absl::Status Control::AttachRing(UniqueFd fd) {
  absl::StatusOr<JobRing> ring = JobRing::Open(std::move(fd));
  if (!ring.ok()) return ring.status();
  return worker_.AttachRing(*std::move(ring));
}

absl::Status Control::MapRegion(const ControlRequest& request, UniqueFd fd) {
  if (fd.valid() == (request.region_kind == RegionKind::kDeviceIpc)) {
    return absl::InvalidArgumentError(
        absl::StrCat("region: expected ", fd.valid() ? "no descriptor, got one" : "a descriptor, got none"));
  }
  if (request.access != Access::kReadOnly && request.access != Access::kReadWrite) {
    return absl::InvalidArgumentError(
        absl::StrCat("access: expected a known value, got ", static_cast<int>(request.access)));
  }
  const RegionSpec spec{request.region_kind, request.access, request.byte_size, request.ipc};
  absl::StatusOr<std::shared_ptr<DeviceMemory>> memory = device_.Map(spec, std::move(fd));
  if (!memory.ok()) return memory.status();
  if (regions_.Add(request.region_id, *std::move(memory), request.access)) return absl::OkStatus();
  return absl::AlreadyExistsError("region_id: expected a fresh one, got one in use");
}

absl::StatusOr<UniqueFd> Control::Allocate(const ControlRequest& request) {
  absl::StatusOr<Allocation> allocation = device_.Allocate(request.byte_size);
  if (!allocation.ok()) return allocation.status();
  if (regions_.Add(request.region_id, std::move(allocation->memory), Access::kReadWrite)) {
    return std::move(allocation->fd);
  }
  return absl::AlreadyExistsError("region_id: expected a fresh one, got one in use");
}

absl::Status Control::CloseRegion(const ControlRequest& request) {
  const ControlReply reply = MakeReply(request.request_id, absl::OkStatus());
  if (regions_.Close(request.region_id, [outbox = outbox_, reply] { outbox->Post(reply); })) return absl::OkStatus();
  return absl::NotFoundError("region_id: expected an open region");
}

}  // namespace gemmd
