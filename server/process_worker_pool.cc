// SPDX-License-Identifier: Apache-2.0
#include "server/process_worker_pool.h"

#include "proto/cores.h"
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

// One percent of what a Hopper GPU computes.
constexpr double kLeastGpuWorkPerSecond = 1e13;

// A job may itself be what breaks devices, for example by memory that cannot be read, and must not go round until every
// worker is quarantined (RestartLimits: five deaths a minute).
constexpr int kMostReturns = 3;

absl::Status NoneReady() { return absl::UnavailableError("no ready worker"); }

}  // namespace

ProcessWorkerPool::ProcessWorkerPool(ProcessWorkerPoolOptions options, std::function<void()> on_change)
    : options_(std::move(options)),
      on_change_(std::move(on_change)),
      usable_cores_(UsableCores()),
      slots_(options_.devices.size()) {
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].traits.device = options_.devices[i];
  supervisor_ = std::make_unique<Supervisor>(
      options_.supervisor,
      Supervisor::Events{
          [this](int worker, pid_t pid, UniqueFd socket) { OnStarted(worker, pid, std::move(socket)); },
          [this](int worker, RestartReason reason, bool quarantined) { OnEnded(worker, reason, quarantined); }});
}

ProcessWorkerPool::~ProcessWorkerPool() {
  std::vector<std::unique_ptr<WorkerLink>> links;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    mutex_.Await(absl::Condition(
        +[](int* starting) { return *starting == 0; }, &starting_links_));
    for (Slot& slot : slots_) {
      slot.state = WorkerState::kDead;
      links.push_back(std::move(slot.link));
    }
  }
  // No restarts from here on; then the workers see their sockets end and exit.
  supervisor_->BeginStop();
  links.clear();
  supervisor_.reset();
  SubmitReturned();
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
    if (generation > 1) ++slot.restarts_by_reason[static_cast<size_t>(slot.ended_by)];
    WorkerLinkOptions options = options_.link;
    options.worker = worker;
    options.generation = generation;
    const bool on_gpu = slot.traits.device != kCpuDevice;
    if (on_gpu) options.least_work_per_second = kLeastGpuWorkPerSecond;
    options.spins = SpinTimesFor(options_.spin_us, usable_cores_, on_gpu);
    absl::StatusOr<std::unique_ptr<WorkerLink>> created = WorkerLink::Create(
        std::move(socket), options,
        {[this, worker, generation](const WorkerTraits& traits, const UniqueFd& counters) {
           OnHello(worker, generation, traits, counters);
         },
         [this, worker, generation] { OnDeath(worker, generation); },
         [this, worker, generation] { OnHang(worker, generation); },
         [this, worker, generation](const JobDescriptor& descriptor, int returns, JobCallback callback) {
           OnReturned(worker, generation, descriptor, returns, std::move(callback));
         }});
    slot.pid = pid;
    slot.state = WorkerState::kStarting;
    if (!created.ok()) {
      // The socket is closed, so the process exits and is started again.
      spdlog::error("worker {}: no link: {}", worker, created.status().ToString());
      return;
    }
    slot.link = *std::move(created);
    link = slot.link.get();
    ++starting_links_;
  }
  // Only this thread and the destructor, which waits for it, take the link away.
  const absl::Status status = link->Run();
  {
    absl::MutexLock lock(&mutex_);
    --starting_links_;
  }
  if (!status.ok()) {
    spdlog::error("worker {}: no job ring: {}", worker, status.ToString());
    supervisor_->ReportLost(worker);
  }
  on_change_();
}

void ProcessWorkerPool::OnEnded(int worker, RestartReason reason, bool quarantined) {
  std::unique_ptr<WorkerLink> link;
  {
    absl::MutexLock lock(&mutex_);
    Slot& slot = this->slot(worker);
    link = std::move(slot.link);
    slot.state = quarantined ? WorkerState::kQuarantined : WorkerState::kDead;
    slot.ended_by = reason;
    if (slot.counters) AddTo(slot.past_counts, slot.counters->ReadCounts());
    slot.counters.reset();
    slot.pid = 0;
    slot.greeted = false;
    slot.warm = false;
    slot.mapped.clear();
    slot.reconciling = 0;
  }
  link.reset();
  SubmitReturned();  // Those that only this worker could take fail if it is quarantined.
  on_change_();
}

void ProcessWorkerPool::OnHello(int worker, uint32_t generation, const WorkerTraits& traits, const UniqueFd& fd) {
  absl::StatusOr<WorkerCounters> counters = WorkerCounters::Open(fd);
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation)) return;
    Slot& slot = this->slot(worker);
    if (!counters.ok()) {
      spdlog::error("worker {}: no counters: {}", worker, counters.status().ToString());
      supervisor_->ReportLost(worker);
      return;
    }
    slot.counters = *std::move(counters);
    slot.traits = traits;
    slot.greeted = true;
    SendLogLevel(slot);
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

void ProcessWorkerPool::OnHang(int worker, uint32_t generation) {
  absl::MutexLock lock(&mutex_);
  if (!IsCurrent(worker, generation)) return;
  spdlog::error("worker {}: has {} requests and finishes none", worker, slot(worker).link->jobs_in_flight());
  supervisor_->ReportHung(worker);
}

void ProcessWorkerPool::Reconcile(int worker, uint32_t generation) {
  {
    absl::MutexLock lock(&mutex_);
    if (!IsCurrent(worker, generation) || !slot(worker).greeted) return;
    if (SendDifference(worker)) return;
    slot(worker).state = WorkerState::kReady;
  }
  supervisor_->ReportReady(worker);
  SubmitReturned();
  on_change_();
  WarmUp(worker, generation, 0);
}

// One shape after another: what a client has prepared meanwhile is not to wait for all of them.
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

void ProcessWorkerPool::OnReturned(int worker, uint32_t generation, const JobDescriptor& descriptor, int returns,
                                   JobCallback callback) {
  {
    absl::MutexLock lock(&mutex_);
    // It ends: nothing more for it.
    if (IsCurrent(worker, generation) && slot(worker).state == WorkerState::kReady) {
      slot(worker).state = WorkerState::kDead;
    }
  }
  if (returns == kMostReturns) {
    callback(absl::UnavailableError(absl::StrCat("the devices of ", returns + 1, " workers broke while it waited")),
             JobCompletion());
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    returned_.push_back({descriptor, std::make_shared<JobCallback>(std::move(callback)), returns + 1});
  }
  SubmitReturned();
}

// To workers that are ready; jobs that no worker will ever take fail.
void ProcessWorkerPool::SubmitReturned() {
  std::vector<std::pair<ReturnedJob, absl::Status>> failed;
  {
    absl::MutexLock lock(&mutex_);
    std::vector<ReturnedJob> waiting;
    for (ReturnedJob& job : returned_) {
      const WorkerMask homes = HomesOf(job.descriptor);
      const absl::StatusOr<SubmittedJob> submitted = SubmitLocked(
          job.descriptor, homes,
          [callback = job.callback](const absl::Status& status, const JobCompletion& completion) {
            (*callback)(status, completion);
          },
          job.returns);
      if (submitted.ok()) {
        slot(submitted->worker).link->LeaveToThread();
      } else if (absl::IsUnavailable(submitted.status()) && HasFuture(homes)) {
        waiting.push_back(std::move(job));
      } else {
        failed.emplace_back(std::move(job), submitted.status());
      }
    }
    returned_ = std::move(waiting);
  }
  for (const auto& [job, status] : failed) (*job.callback)(status, JobCompletion());
}

// The workers that reach every operand of the job.
WorkerMask ProcessWorkerPool::HomesOf(const JobDescriptor& descriptor) const {
  WorkerMask homes = kAllWorkers;
  for (const OperandDescriptor& operand : descriptor.operands) {
    const auto region = regions_.find(operand.region);
    if (region != regions_.end()) homes &= region->second.workers;
  }
  return homes;
}

bool ProcessWorkerPool::HasFuture(WorkerMask workers) const {
  if (stopping_) return false;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (Contains(workers, static_cast<int>(i)) && slots_[i].state != WorkerState::kQuarantined) return true;
  }
  return false;
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

absl::StatusOr<SubmittedJob> ProcessWorkerPool::Submit(const JobDescriptor& descriptor, WorkerMask workers,
                                                       JobCallback done) {
  absl::ReaderMutexLock lock(&mutex_);
  absl::StatusOr<SubmittedJob> job = SubmitLocked(descriptor, workers, std::move(done));
  if (job.ok()) slots_[static_cast<size_t>(job->worker)].link->LeaveToThread();
  return job;
}

absl::StatusOr<SubmittedJob> ProcessWorkerPool::SubmitAndAssist(const JobDescriptor& descriptor, WorkerMask workers,
                                                                JobCallback done) {
  WorkerLink* link = nullptr;
  absl::StatusOr<SubmittedJob> job;
  {
    absl::ReaderMutexLock lock(&mutex_);
    job = SubmitLocked(descriptor, workers, std::move(done));
    if (!job.ok()) return job;
    WorkerLink* const used = slots_[static_cast<size_t>(job->worker)].link.get();
    // A link that goes away waits for its assistant, so this one stays until then, without the lock.
    if (used->TryAssist()) link = used;
  }
  if (link != nullptr) link->Assist();
  return job;
}

absl::StatusOr<SubmittedJob> ProcessWorkerPool::SubmitLocked(const JobDescriptor& descriptor, WorkerMask workers,
                                                             JobCallback done, int returns) {
  absl::InlinedVector<WorkerLoad, kUsualWorkers> loads;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const bool ready = Contains(workers, static_cast<int>(i)) && slots_[i].state == WorkerState::kReady;
    loads.push_back({ready, ready ? slots_[i].link->work_in_flight() : 0});
  }
  const std::optional<int> least = LeastLoaded(loads);
  if (!least) {
    return workers == kAllWorkers ? NoneReady()
                                  : absl::UnavailableError("the worker that holds the operands is not ready");
  }
  const Slot& slot = slots_[static_cast<size_t>(*least)];
  absl::StatusOr<uint64_t> job_id = slot.link->Submit(descriptor, PredictWork(descriptor), std::move(done), returns);
  if (!job_id.ok()) return job_id.status();
  return SubmittedJob{*least, *job_id};
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

void ProcessWorkerPool::SetLogLevel(uint8_t level) {
  absl::MutexLock lock(&mutex_);
  log_level_ = level;
  for (const Slot& slot : slots_) {
    if (slot.greeted) SendLogLevel(slot);
  }
}

void ProcessWorkerPool::SendLogLevel(const Slot& slot) {
  if (!log_level_ || slot.link == nullptr) return;
  ControlRequest request;
  request.type = ControlRequestType::kSetLogLevel;
  request.log_level = *log_level_;
  // Fails only with the worker, and then its successor is told.
  slot.link->Control(request, nullptr, [](const absl::StatusOr<ControlResult>&) {}).IgnoreError();
}

std::vector<WorkerSnapshot> ProcessWorkerPool::Snapshot() const {
  const uint64_t now_ns = MonotonicNanos();
  absl::ReaderMutexLock lock(&mutex_);
  std::vector<WorkerSnapshot> snapshots;
  for (const Slot& slot : slots_) {
    WorkerSnapshot snapshot;
    snapshot.traits = slot.traits;
    snapshot.state = slot.state;
    snapshot.restarts = slot.generation > 0 ? slot.generation - 1 : 0;
    snapshot.restarts_by_reason = slot.restarts_by_reason;
    snapshot.pid = slot.pid;
    if (slot.link != nullptr) {
      snapshot.jobs_in_flight = slot.link->jobs_in_flight();
      const uint64_t oldest_ns = slot.link->oldest_submission_ns();
      if (oldest_ns != 0) snapshot.oldest_job_ns = now_ns - std::min(now_ns, oldest_ns);
    }
    snapshot.counts = slot.past_counts;
    if (slot.counters) {
      AddTo(snapshot.counts, slot.counters->ReadCounts());
      snapshot.gauges = slot.counters->ReadGauges();
    }
    snapshots.push_back(std::move(snapshot));
  }
  return snapshots;
}

}  // namespace gemmd
