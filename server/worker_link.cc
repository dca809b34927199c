// SPDX-License-Identifier: Apache-2.0
#include "server/worker_link.h"

#include "proto/message_socket.h"
#include "server/network_spin.h"

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <string>
#include <sys/socket.h>
#include <utility>

namespace gemmd {
namespace {

// A job id is (worker, generation, sequence, slot), so that a completion finds its slot at once and a late cancel finds
// nothing. Of generations the lowest ten bits do: a cancel is not late by a thousand restarts.
constexpr int kSlotBits = 12;
constexpr int kSequenceBits = 36;
constexpr int kGenerationBits = 64 - kWorkerBits - kSequenceBits - kSlotBits;
constexpr uint32_t kMaxJobs = uint32_t{1} << kSlotBits;

uint64_t IdPrefix(const WorkerLinkOptions& options) {
  const uint64_t generation = options.generation & ((uint32_t{1} << kGenerationBits) - 1);
  return static_cast<uint64_t>(options.worker) << (64 - kWorkerBits) | generation << (kSequenceBits + kSlotBits);
}

constexpr uint32_t SlotOf(uint64_t job_id) { return static_cast<uint32_t>(job_id) & (kMaxJobs - 1); }

absl::Status DiedError() { return absl::UnavailableError("worker died under the request"); }
absl::Status DeadError() { return absl::UnavailableError("worker is not running"); }

// Fixed-size text of a peer that need not have terminated it.
template <size_t kSize>
std::string Text(const char (&field)[kSize]) {
  return std::string(field, strnlen(field, kSize));
}

absl::Status StatusOf(const ControlReply& reply) {
  if (reply.code == 0) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(reply.code), Text(reply.message));
}

absl::Status StatusOf(const JobCompletion& completion) {
  if (completion.code == 0) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(completion.code), Describe(completion.reason));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerLink>> WorkerLink::Create(UniqueFd socket, WorkerLinkOptions options,
                                                               Events events) {
  if (options.max_jobs_in_flight == 0 || options.max_jobs_in_flight > kMaxJobs) {
    return absl::InvalidArgumentError(absl::StrCat("max_jobs_in_flight: expected 1 to ", kMaxJobs));
  }
  absl::StatusOr<JobRing> ring = JobRing::Create(options.ring_slots);
  if (!ring.ok()) return ring.status();
  return std::unique_ptr<WorkerLink>(new WorkerLink(std::move(socket), *std::move(ring), options, std::move(events)));
}

WorkerLink::WorkerLink(UniqueFd socket, JobRing ring, WorkerLinkOptions options, Events events)
    : options_(options),
      events_(std::move(events)),
      socket_(std::move(socket)),
      ring_(std::move(ring)),
      completions_(ring_.completions(), ring_.completion_slots(), ring_.slots()),
      submitted_ns_(options.max_jobs_in_flight),
      submissions_(ring_.submissions(), ring_.descriptor_slots(), ring_.slots()),
      jobs_(options.max_jobs_in_flight) {
  for (uint32_t index = options.max_jobs_in_flight; index > 0; --index) free_jobs_.push_back(index - 1);
}

absl::Status WorkerLink::Run() {
  control_thread_ = std::thread([this] { ReadControl(); });
  completion_thread_ = std::thread([this] { RunCompletionThread(); });
  return AttachRing();
}

absl::Status WorkerLink::AttachRing() {
  const int copy = fcntl(ring_.fd(), F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return absl::ErrnoToStatus(errno, "dup of the job ring");
  ControlRequest attach;
  attach.type = ControlRequestType::kAttachRing;
  return Control(attach, std::make_shared<const UniqueFd>(copy), [this](absl::StatusOr<ControlResult> result) {
    if (result.ok() || dead()) return;
    spdlog::error("worker refused its job ring: {}", result.status().ToString());
    shutdown(socket_.get(), SHUT_RDWR);
  });
}

WorkerLink::~WorkerLink() {
  shutdown(socket_.get(), SHUT_RDWR);
  if (control_thread_.joinable()) control_thread_.join();
  if (completion_thread_.joinable()) completion_thread_.join();
}

absl::StatusOr<uint64_t> WorkerLink::Submit(const JobDescriptor& descriptor, double work, JobCallback callback,
                                            int returns) {
  JobDescriptor job = descriptor;
  const uint64_t now_ns = MonotonicNanos();
  absl::MutexLock lock(&mutex_);
  if (dead()) return DeadError();
  if (free_jobs_.empty()) return absl::ResourceExhaustedError("too many requests in flight on this worker");
  const uint32_t index = free_jobs_.back();
  job.job_id = IdPrefix(options_) | (next_sequence_++ << kSlotBits) | index;
  jobs_[index] = {job.job_id, work, std::move(callback), job, returns};
  // Counted before the worker can answer, so that nobody stops reading completions.
  jobs_in_flight_.fetch_add(1, std::memory_order_relaxed);
  if (!submissions_.Write(job)) {
    jobs_[index] = {};
    jobs_in_flight_.fetch_sub(1, std::memory_order_relaxed);
    return absl::ResourceExhaustedError("the worker's job ring is full");
  }
  free_jobs_.pop_back();
  submitted_ns_[index].store(now_ns, std::memory_order_relaxed);
  work_in_flight_.fetch_add(work, std::memory_order_relaxed);
  if (options_.spins.network_ns > 0) network_spin::KeepUntil(now_ns + options_.spins.network_ns);
  return job.job_id;
}

uint64_t WorkerLink::oldest_submission_ns() const {
  uint64_t oldest_ns = 0;
  for (const std::atomic<uint64_t>& submitted_ns : submitted_ns_) {
    const uint64_t ns = submitted_ns.load(std::memory_order_relaxed);
    if (ns != 0 && (oldest_ns == 0 || ns < oldest_ns)) oldest_ns = ns;
  }
  return oldest_ns;
}

void WorkerLink::Cancel(uint64_t job_id) {
  JobDescriptor cancel;
  cancel.op = Op::kCancel;
  cancel.cancel_job_id = job_id;
  absl::MutexLock lock(&mutex_);
  const uint32_t index = SlotOf(job_id);
  if (index >= jobs_.size() || jobs_[index].job_id != job_id) return;
  // On a full ring the cancellation is lost; the job then runs, which a cancellation never rules out.
  (void)submissions_.Write(cancel);
}

absl::Status WorkerLink::Control(ControlRequest request, std::shared_ptr<const UniqueFd> fd, ControlCallback callback) {
  absl::MutexLock lock(&mutex_);
  if (dead()) return DeadError();
  request.request_id = next_request_id_++;
  controls_.emplace(request.request_id, std::move(callback));
  control_queue_.push_back({request, std::move(fd)});
  SendQueuedControl();
  return absl::OkStatus();
}

void WorkerLink::SendQueuedControl() {
  while (!control_queue_.empty() && controls_sent_ < options_.max_control_in_flight) {
    const OutgoingControl& next = control_queue_.front();
    // A failed send means that the worker is gone; the reader sees the end of file and fails the callback.
    (void)SendStruct(socket_.get(), next.request, next.fd == nullptr ? -1 : next.fd->get());
    control_queue_.pop_front();
    ++controls_sent_;
  }
}

void WorkerLink::ReadControl() {
  while (true) {
    absl::StatusOr<ReceivedMessage> message = ReceiveMessage(socket_.get());
    if (!message.ok()) break;
    if (message->bytes.size() != sizeof(ControlReply)) {
      spdlog::error("worker sent a control reply of {} bytes, expected {}", message->bytes.size(),
                    sizeof(ControlReply));
      break;
    }
    ControlReply reply;
    std::memcpy(&reply, message->bytes.data(), sizeof(reply));
    HandleReply(reply, std::move(message->fd));
  }
  // The worker sees the end too, if it is the protocol that failed.
  shutdown(socket_.get(), SHUT_RDWR);
  {
    // Under the lock, so that no Submit or Control is half way in when the callbacks are failed.
    absl::MutexLock lock(&mutex_);
    dead_.store(true, std::memory_order_release);
  }
  if (events_.on_death) events_.on_death();
  FailControl();
  completions_.Interrupt();
}

void WorkerLink::HandleReply(const ControlReply& reply, UniqueFd fd) {
  if (reply.request_id == 0) {
    if (!events_.on_hello) return;
    events_.on_hello({Text(reply.device), Text(reply.name), reply.memory_bytes, reply.cores, reply.mps != 0},
                     std::move(fd));
    return;
  }
  ControlCallback callback;
  {
    absl::MutexLock lock(&mutex_);
    auto found = controls_.find(reply.request_id);
    if (found == controls_.end()) return;
    callback = std::move(found->second);
    controls_.erase(found);
    --controls_sent_;
    SendQueuedControl();
  }
  const absl::Status status = StatusOf(reply);
  if (!status.ok()) {
    callback(status);
    return;
  }
  callback(ControlResult{reply, std::move(fd)});
}

void WorkerLink::FailControl() {
  std::unordered_map<uint64_t, ControlCallback> controls;
  {
    absl::MutexLock lock(&mutex_);
    controls.swap(controls_);
    control_queue_.clear();
  }
  for (auto& [id, callback] : controls) callback(DiedError());
}

bool WorkerLink::TryAssist() {
  absl::MutexLock lock(&mutex_);
  if (reader_ != Reader::kNobody) return false;
  const uint64_t in_flight = jobs_in_flight();
  if (in_flight == 0) return false;
  if (in_flight > 1 || options_.spins.assist_ns == 0) {
    thread_wanted_ = true;
    return false;
  }
  reader_ = Reader::kAssistant;
  return true;
}

void WorkerLink::LeaveToThread() {
  absl::MutexLock lock(&mutex_);
  if (reader_ == Reader::kNobody && jobs_in_flight() > 0) thread_wanted_ = true;
}

void WorkerLink::Assist() {
  const uint64_t end_ns = MonotonicNanos() + options_.spins.assist_ns;
  while (jobs_in_flight() > 0 && !dead() && MonotonicNanos() < end_ns) {
    // The clock costs about 20 ns; a few turns between two looks at it keep the reaction to a completion short.
    for (int turn = 0; turn < 16 && jobs_in_flight() > 0; ++turn) {
      DrainRing();
      __builtin_ia32_pause();
    }
    sched_yield();
  }
  absl::MutexLock lock(&mutex_);
  reader_ = Reader::kNobody;
  if (jobs_in_flight() > 0) thread_wanted_ = true;
}

void WorkerLink::RunCompletionThread() {
  while (BecomeReader()) ReadUntilIdle();
  DrainRing();
  FailJobs();
}

// Waits until the thread is needed; false if that is because the worker died.
bool WorkerLink::BecomeReader() {
  const auto needed = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return reader_ == Reader::kNobody && (thread_wanted_ || dead());
  };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&needed));
  reader_ = Reader::kThread;
  thread_wanted_ = false;
  return !dead();
}

void WorkerLink::ReadUntilIdle() {
  uint64_t progress_ns = MonotonicNanos();
  while (true) {
    const bool was_dead = dead();
    const bool has_read = DrainRing();
    if (StopReading(was_dead)) return;
    const uint64_t now_ns = MonotonicNanos();
    const uint64_t hang_ns = HangDeadline(progress_ns);
    const bool hangs = !has_read && hang_ns != 0 && now_ns >= hang_ns;
    if (hangs && !was_dead && events_.on_hang) events_.on_hang();
    if (has_read || hangs) progress_ns = now_ns;
    completions_.Wait(HangDeadline(progress_ns), SpinPolicy{options_.spins.completion_ns});
  }
}

// 0: none.
uint64_t WorkerLink::HangDeadline(uint64_t progress_ns) const {
  if (options_.hang_timeout_ns == 0) return 0;
  return progress_ns + options_.hang_timeout_ns +
         static_cast<uint64_t>(work_in_flight() / options_.least_work_per_second * 1e9);
}

bool WorkerLink::StopReading(bool was_dead) {
  absl::MutexLock lock(&mutex_);
  if (!was_dead && jobs_in_flight() > 0) return false;
  reader_ = Reader::kNobody;
  return true;
}

// True if there was something to read.
bool WorkerLink::DrainRing() {
  JobCompletion completion;
  RingRead read = RingRead::kEmpty;
  bool has_read = false;
  while ((read = completions_.Read(completion)) == RingRead::kItem) {
    Complete(completion);
    has_read = true;
  }
  if (read == RingRead::kBroken) {
    if (!dead()) broken_ring_.Log(spdlog::level::err, "worker broke its completion ring");
    shutdown(socket_.get(), SHUT_RDWR);
  }
  return has_read;
}

void WorkerLink::Complete(const JobCompletion& completion) {
  if (options_.spins.network_ns > 0) network_spin::KeepUntil(MonotonicNanos() + options_.spins.network_ns);
  PendingJob job;
  if (!TakeJob(completion.job_id, job)) {
    unknown_job_.Log(spdlog::level::err, "worker completed a job that it was not given");
    return;
  }
  if (completion.reason.rule == Rule::kNotStarted && events_.on_returned) {
    events_.on_returned(job.descriptor, job.returns, std::move(job.callback));
    return;
  }
  job.callback(StatusOf(completion), completion);
}

bool WorkerLink::TakeJob(uint64_t job_id, PendingJob& job) {
  absl::MutexLock lock(&mutex_);
  const uint32_t index = SlotOf(job_id);
  if (job_id == 0 || index >= jobs_.size() || jobs_[index].job_id != job_id) return false;
  std::swap(job, jobs_[index]);
  ReleaseSlot(index, job.work);
  return true;
}

void WorkerLink::ReleaseSlot(uint32_t index, double work) {
  work_in_flight_.fetch_sub(work, std::memory_order_relaxed);
  jobs_in_flight_.fetch_sub(1, std::memory_order_relaxed);
  submitted_ns_[index].store(0, std::memory_order_relaxed);
  free_jobs_.push_back(index);
}

void WorkerLink::FailJobs() {
  std::vector<PendingJob> failed;
  {
    absl::MutexLock lock(&mutex_);
    for (uint32_t index = 0; index < jobs_.size(); ++index) {
      if (jobs_[index].job_id == 0) continue;
      failed.push_back(std::exchange(jobs_[index], {}));
      ReleaseSlot(index, failed.back().work);
    }
  }
  JobCompletion none;
  for (PendingJob& job : failed) {
    none.job_id = job.job_id;
    job.callback(DiedError(), none);
  }
}

}  // namespace gemmd
