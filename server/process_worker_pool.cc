// SPDX-License-Identifier: Apache-2.0
#include "server/process_worker_pool.h"

#include "server/router.h"

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace gemmd {
namespace {

// Most workers that routing looks at without an allocation: a machine has eight GPUs.
constexpr size_t kUsualWorkers = 8;

absl::Status NoneReady() { return absl::UnavailableError("no ready worker"); }

ControlRequest CloseRequest(uint64_t region_id) {
  ControlRequest request;
  request.type = ControlRequestType::kCloseRegion;
  request.region_id = region_id;
  return request;
}

// Waits for the replies of several workers to one question, then calls `done` once. Its maker holds one count until all
// questions are sent.
class Fanout {
 public:
  using Done = std::function<void(absl::Status, const ControlReply&)>;
  explicit Fanout(Done done) : done_(std::move(done)) {}

  void Expect() {
    absl::MutexLock lock(&mutex_);
    ++waiting_;
  }

  // A worker that dies is no refusal: its successor gets everything again.
  void Answer(const absl::StatusOr<ControlResult>& result) {
    if (!result.ok()) return Finish(absl::IsUnavailable(result.status()) ? absl::OkStatus() : result.status(), {});
    Finish(absl::OkStatus(), result->reply);
  }

  void Unexpect() { AllSent(); }
  void AllSent() { Finish(absl::OkStatus(), {}); }

 private:
  void Finish(const absl::Status& status, const ControlReply& reply) {
    {
      absl::MutexLock lock(&mutex_);
      if (status_.ok()) status_ = status;
      sum_.kernels_ready += reply.kernels_ready;
      sum_.kernels_compiled += reply.kernels_compiled;
      if (--waiting_ > 0) return;
    }
    done_(status_, sum_);
  }

  const Done done_;
  absl::Mutex mutex_;
  int waiting_ = 1;
  absl::Status status_;
  ControlReply sum_;
};

}  // namespace

ProcessWorkerPool::ProcessWorkerPool(ProcessWorkerPoolOptions options, std::function<void()> on_change)
    : options_(std::move(options)), on_change_(std::move(on_change)), slots_(options_.devices.size()) {
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].traits.device = options_.devices[i];
  supervisor_ = std::make_unique<Supervisor>(
      options_.supervisor,
      Supervisor::Events{[this](int worker, pid_t pid, UniqueFd socket) { OnStarted(worker, pid, std::move(socket)); },
                         [this](int worker, bool quarantined) { OnEnded(worker, quarantined); }});
}

ProcessWorkerPool::~ProcessWorkerPool() {
  std::vector<std::unique_ptr<WorkerLink>> links;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    for (Slot& slot : slots_) {
      slot.state = WorkerState::kDead;
      links.push_back(std::move(slot.link));
    }
  }
  // No restarts from here on; then the workers see their sockets end and exit.
  supervisor_->BeginStop();
  links.clear();
  supervisor_.reset();
}

void ProcessWorkerPool::Start() { supervisor_->Start(); }

absl::Status ProcessWorkerPool::WaitReady() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](ProcessWorkerPool* pool) ABSL_SHARED_LOCKS_REQUIRED(pool->mutex_) { return pool->Settled(); }, this));
  for (const Slot& slot : slots_) {
    if (slot.state == WorkerState::kQuarantined) {
      return absl::UnavailableError(absl::StrCat("worker ", slot.traits.device, " does not start"));
    }
  }
  return absl::OkStatus();
}

bool ProcessWorkerPool::Settled() const {
  bool all_ready = true;
  for (const Slot& slot : slots_) {
    if (slot.state == WorkerState::kQuarantined) return true;
    if (slot.state != WorkerState::kReady) all_ready = false;
  }
  return all_ready;
}

absl::Status ProcessWorkerPool::WaitWarm() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](ProcessWorkerPool* pool) ABSL_SHARED_LOCKS_REQUIRED(pool->mutex_) { return pool->Warm(); }, this));
  for (const Slot& slot : slots_) {
    if (slot.state == WorkerState::kQuarantined) {
      return absl::UnavailableError(absl::StrCat("worker ", slot.traits.device, " died too often while it warmed up"));
    }
  }
  return warm_up_status_;
}

bool ProcessWorkerPool::Warm() const {
  if (!warm_up_status_.ok()) return true;
  bool all_warm = true;
  for (const Slot& slot : slots_) {
    if (slot.state == WorkerState::kQuarantined) return true;
    if (!slot.warm) all_warm = false;
  }
  return all_warm;
}

bool ProcessWorkerPool::IsCurrent(int worker, uint32_t generation) {
  return slot(worker).generation == generation && slot(worker).link != nullptr;
}

void ProcessWorkerPool::OnStarted(int worker, pid_t pid, UniqueFd socket) {
  WorkerLink* link = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    Slot& slot = this->slot(worker);
    const uint32_t generation = ++slot.generation;
    WorkerLinkOptions options = options_.link;
    options.generation = generation;
    absl::StatusOr<std::unique_ptr<WorkerLink>> created = WorkerLink::Create(
        std::move(socket), options,
        {[this, worker, generation](const WorkerTraits& traits) { OnHello(worker, generation, traits); },
         [this, worker, generation] { OnDeath(worker, generation); }});
    slot.pid = pid;
    slot.state = WorkerState::kStarting;
    if (!created.ok()) {
      // The socket is closed, so the process exits and is started again.
      spdlog::error("worker {}: no link: {}", worker, created.status().ToString());
      return;
    }
    slot.link = *std::move(created);
    link = slot.link.get();
  }
  // Only this thread and the destructor, which waits for it, take the link away.
  if (absl::Status status = link->Run(); !status.ok()) {
    spdlog::error("worker {}: no job ring: {}", worker, status.ToString());
    supervisor_->ReportLost(worker);
  }
  on_change_();
}

void ProcessWorkerPool::OnEnded(int worker, bool quarantined) {
  std::unique_ptr<WorkerLink> link;
  {
    absl::MutexLock lock(&mutex_);
    Slot& slot = this->slot(worker);
    link = std::move(slot.link);
    slot.state = quarantined ? WorkerState::kQuarantined : WorkerState::kDead;
    slot.pid = 0;
    slot.greeted = false;
    slot.warm = false;
    slot.mapped.clear();
    slot.reconciling = 0;
  }
  on_change_();
}

void ProcessWorkerPool::OnHello(int worker, uint32_t generation, const WorkerTraits& traits) {
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation)) return;
    Slot& slot = this->slot(worker);
    slot.traits = traits;
    slot.greeted = true;
  }
  Reconcile(worker, generation);
}

void ProcessWorkerPool::OnDeath(int worker, uint32_t generation) {
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation)) return;
    slot(worker).state = WorkerState::kDead;
    slot(worker).greeted = false;
  }
  supervisor_->ReportLost(worker);
  on_change_();
}

void ProcessWorkerPool::Reconcile(int worker, uint32_t generation) {
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation) || !slot(worker).greeted) return;
    if (SendDifference(worker)) return;
    slot(worker).state = WorkerState::kReady;
  }
  supervisor_->ReportReady(worker);
  on_change_();
  WarmUp(worker, generation, 0);
}

// One shape after another: a worker answers control requests in order, and regions are not to wait for all of them.
void ProcessWorkerPool::WarmUp(int worker, uint32_t generation, size_t next) {
  absl::MutexLock lock(&mutex_);
  if (!IsCurrent(worker, generation) || !slot(worker).greeted) return;
  if (next == options_.warm_up.size()) {
    slot(worker).warm = true;
    if (next > 0) spdlog::info("worker {}: warm, {} shapes prepared", worker, next);
    return;
  }
  ControlRequest request;
  request.type = ControlRequestType::kPrepare;
  request.shape = options_.warm_up[next];
  const auto answer = [this, worker, generation, next](const absl::StatusOr<ControlResult>& result) {
    OnWarmedUp(worker, generation, next, result.status());
  };
  // Refused only by a link that just died; its successor begins again.
  slot(worker).link->Control(request, nullptr, answer).IgnoreError();
}

void ProcessWorkerPool::OnWarmedUp(int worker, uint32_t generation, size_t index, const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation) || !slot(worker).greeted) return;
    if (!status.ok()) {
      spdlog::error("worker {}: warm-up: shapes[{}]: {}", worker, index, status.ToString());
      warm_up_status_.Update(absl::Status(status.code(), absl::StrCat("shapes[", index, "]: ", status.message())));
    }
  }
  WarmUp(worker, generation, index + 1);
}

bool ProcessWorkerPool::SendDifference(int worker) {
  Slot& slot = this->slot(worker);
  const uint32_t generation = slot.generation;
  const auto answer = [this, worker, generation](absl::StatusOr<ControlResult> result) {
    OnReconciled(worker, generation, result.status());
  };
  uint32_t sent = 0;
  for (const auto& [id, region] : regions_) {
    if (region.worker != kAnyWorker && region.worker != worker) continue;
    if (!slot.mapped.insert(id).second) continue;
    ControlRequest request;
    request.type = ControlRequestType::kMapRegion;
    request.region_id = id;
    request.region_kind = region.kind;
    request.access = region.access;
    request.byte_size = region.byte_size;
    if (slot.link->Control(request, region.fd, answer).ok()) ++sent;
  }
  std::vector<uint64_t> closed;
  for (uint64_t id : slot.mapped) {
    if (regions_.find(id) == regions_.end()) closed.push_back(id);
  }
  for (uint64_t id : closed) {
    slot.mapped.erase(id);
    if (slot.link->Control(CloseRequest(id), nullptr, answer).ok()) ++sent;
  }
  slot.reconciling = sent;
  return sent > 0;
}

void ProcessWorkerPool::OnReconciled(int worker, uint32_t generation, const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation) || !slot(worker).greeted) return;
    if (!status.ok()) spdlog::error("worker {}: does not take a region back: {}", worker, status.ToString());
    if (--slot(worker).reconciling > 0) return;
  }
  Reconcile(worker, generation);
}

void ProcessWorkerPool::MapRegion(uint64_t region_id, RegionKind kind, Access access, uint64_t byte_size, UniqueFd fd,
                                  StatusCallback done) {
  auto fanout = std::make_shared<Fanout>(
      [this, region_id, done = std::move(done)](const absl::Status& status, const ControlReply&) {
        if (status.ok()) return done(status);
        CloseRegion(region_id, [done, status](const absl::Status&) { done(status); });
      });
  {
    absl::MutexLock lock(&mutex_);
    const Region region{kind, access, byte_size, std::make_shared<const UniqueFd>(std::move(fd)), kAnyWorker};
    regions_.emplace(region_id, region);
    ControlRequest request;
    request.type = ControlRequestType::kMapRegion;
    request.region_id = region_id;
    request.region_kind = kind;
    request.access = access;
    request.byte_size = byte_size;
    for (Slot& slot : slots_) {
      if (slot.state != WorkerState::kReady) continue;
      slot.mapped.insert(region_id);
      fanout->Expect();
      // A link that just died answers nothing, and its successor starts from the table.
      const auto answer = [fanout](absl::StatusOr<ControlResult> result) { fanout->Answer(result); };
      if (!slot.link->Control(request, region.fd, answer).ok()) fanout->Unexpect();
    }
  }
  fanout->AllSent();
}

void ProcessWorkerPool::CloseRegion(uint64_t region_id, StatusCallback done) {
  auto fanout = std::make_shared<Fanout>(
      [done = std::move(done)](const absl::Status& status, const ControlReply&) { done(status); });
  {
    absl::MutexLock lock(&mutex_);
    regions_.erase(region_id);
    for (Slot& slot : slots_) {
      if (slot.state != WorkerState::kReady || slot.mapped.erase(region_id) == 0) continue;
      fanout->Expect();
      const auto answer = [fanout](absl::StatusOr<ControlResult> result) { fanout->Answer(result); };
      if (!slot.link->Control(CloseRequest(region_id), nullptr, answer).ok()) fanout->Unexpect();
    }
  }
  fanout->AllSent();
}

int ProcessWorkerPool::RoomiestWorker() const {
  std::vector<uint64_t> used(slots_.size());
  for (const auto& [id, region] : regions_) {
    if (region.worker != kAnyWorker) used[static_cast<size_t>(region.worker)] += region.byte_size;
  }
  int best = kAnyWorker;
  double best_room = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].state != WorkerState::kReady) continue;
    const double room = static_cast<double>(slots_[i].traits.memory_bytes) - static_cast<double>(used[i]);
    if (best != kAnyWorker && room <= best_room) continue;
    best = static_cast<int>(i);
    best_room = room;
  }
  return best;
}

void ProcessWorkerPool::AllocateTensor(uint64_t region_id, uint64_t byte_size, AllocateCallback done) {
  ControlRequest request;
  request.type = ControlRequestType::kAllocate;
  request.region_id = region_id;
  request.byte_size = byte_size;
  absl::Status status = NoneReady();
  {
    absl::MutexLock lock(&mutex_);
    const int worker = RoomiestWorker();
    if (worker != kAnyWorker) {
      status = slot(worker).link->Control(
          request, nullptr, [this, region_id, byte_size, worker, done](absl::StatusOr<ControlResult> result) {
            if (result.ok()) result->reply.memory_bytes = byte_size;
            done(OnAllocated(region_id, worker, std::move(result)));
          });
    }
  }
  if (!status.ok()) done(status);
}

absl::StatusOr<int> ProcessWorkerPool::OnAllocated(uint64_t region_id, int worker,
                                                   absl::StatusOr<ControlResult> result) {
  if (!result.ok()) return result.status();
  if (!result->fd.valid()) return absl::InternalError("the worker gave no descriptor for the tensor's memory");
  absl::MutexLock lock(&mutex_);
  // A link delivers its replies before its death, and the next process starts after that, so this is still the process
  // that has the memory, or none is and the next one gets it from the table.
  slot(worker).mapped.insert(region_id);
  regions_.emplace(region_id, Region{RegionKind::kTensor, Access::kReadWrite, result->reply.memory_bytes,
                                     std::make_shared<const UniqueFd>(std::move(result->fd)), worker});
  return worker;
}

absl::StatusOr<SubmittedJob> ProcessWorkerPool::Submit(const JobDescriptor& descriptor, int worker, JobCallback done) {
  absl::ReaderMutexLock lock(&mutex_);
  absl::StatusOr<SubmittedJob> job = SubmitLocked(descriptor, worker, std::move(done));
  if (job.ok()) slots_[static_cast<size_t>(job->worker)].link->LeaveToThread();
  return job;
}

absl::StatusOr<SubmittedJob> ProcessWorkerPool::SubmitAndAssist(const JobDescriptor& descriptor, int worker,
                                                                JobCallback done) {
  WorkerLink* link = nullptr;
  absl::StatusOr<SubmittedJob> job;
  {
    absl::ReaderMutexLock lock(&mutex_);
    job = SubmitLocked(descriptor, worker, std::move(done));
    if (!job.ok()) return job;
    WorkerLink* const used = slots_[static_cast<size_t>(job->worker)].link.get();
    // A link that goes away waits for its assistant, so this one stays until then, without the lock.
    if (used->TryAssist()) link = used;
  }
  if (link != nullptr) link->Assist();
  return job;
}

absl::StatusOr<SubmittedJob> ProcessWorkerPool::SubmitLocked(const JobDescriptor& descriptor, int worker,
                                                             JobCallback done) {
  int chosen = worker;
  if (worker == kAnyWorker) {
    absl::InlinedVector<WorkerLoad, kUsualWorkers> loads;
    for (const Slot& slot : slots_) {
      const bool ready = slot.state == WorkerState::kReady;
      loads.push_back({ready, ready ? slot.link->work_in_flight() : 0});
    }
    const std::optional<int> least = LeastLoaded(loads);
    if (!least) return NoneReady();
    chosen = *least;
  }
  const Slot& slot = slots_[static_cast<size_t>(chosen)];
  if (slot.state != WorkerState::kReady)
    return absl::UnavailableError("the worker that holds the tensors is not ready");
  absl::StatusOr<uint64_t> job_id = slot.link->Submit(descriptor, PredictWork(descriptor), std::move(done));
  if (!job_id.ok()) return job_id.status();
  return SubmittedJob{chosen, *job_id};
}

void ProcessWorkerPool::Cancel(const SubmittedJob& job) {
  if (job.worker < 0) return;
  absl::ReaderMutexLock lock(&mutex_);
  const Slot& slot = slots_[static_cast<size_t>(job.worker)];
  if (slot.link != nullptr) slot.link->Cancel(job.job_id);
}

void ProcessWorkerPool::Prepare(const PrepareShape& shape, PrepareCallback done) {
  ControlRequest request;
  request.type = ControlRequestType::kPrepare;
  request.shape = shape;
  int asked = 0;
  auto fanout = std::make_shared<Fanout>([done](const absl::Status& status, const ControlReply& sum) {
    if (!status.ok()) return done(status);
    done(sum);
  });
  {
    absl::ReaderMutexLock lock(&mutex_);
    for (const Slot& slot : slots_) {
      if (slot.state != WorkerState::kReady) continue;
      fanout->Expect();
      const auto answer = [fanout](absl::StatusOr<ControlResult> result) { fanout->Answer(result); };
      if (slot.link->Control(request, nullptr, answer).ok()) {
        ++asked;
      } else {
        fanout->Unexpect();
      }
    }
  }
  if (asked == 0) return done(NoneReady());
  fanout->AllSent();
}

std::vector<WorkerSnapshot> ProcessWorkerPool::Snapshot() const {
  absl::ReaderMutexLock lock(&mutex_);
  std::vector<WorkerSnapshot> snapshots;
  for (const Slot& slot : slots_) {
    WorkerSnapshot snapshot;
    snapshot.traits = slot.traits;
    snapshot.state = slot.state;
    snapshot.restarts = slot.generation > 0 ? slot.generation - 1 : 0;
    snapshot.pid = slot.pid;
    snapshot.jobs_in_flight = slot.link == nullptr ? 0 : slot.link->jobs_in_flight();
    snapshots.push_back(std::move(snapshot));
  }
  return snapshots;
}

}  // namespace gemmd
