// SPDX-License-Identifier: Apache-2.0
#include "tests/server/fake_worker_pool.h"

#include <cstring>
#include <string>
#include <utility>

namespace gemmd {
namespace {

JobCompletion Failure(JobField field, Rule rule) {
  JobCompletion completion;
  completion.reason.field = field;
  completion.reason.rule = rule;
  completion.code = CodeOf(rule);
  return completion;
}

}  // namespace

FakeWorkerPool::FakeWorkerPool() : thread_([this] { Run(); }) {}

FakeWorkerPool::~FakeWorkerPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    paused_ = false;
  }
  thread_.join();
}

void FakeWorkerPool::MapRegion(uint64_t region_id, const RegionToMap& region, UniqueFd fd, StatusCallback done) {
  auto shared_fd = std::make_shared<UniqueFd>(std::move(fd));
  Post([this, region_id, region, shared_fd, done = std::move(done)] {
    absl::Status status = TakeFailure(&FakeWorkerPool::fail_control_).value_or(absl::OkStatus());
    auto memory = std::make_shared<Memory>();
    if (status.ok() && region.kind == RegionKind::kDeviceIpc) {
      memory->allocated.resize(region.byte_size);  // There is no memory to find.
    } else if (status.ok()) {
      auto mapping = SharedMapping::Map(shared_fd->get(), region.byte_size, region.access);
      status = mapping.status();
      if (status.ok()) memory->mapping = *std::move(mapping);
    }
    if (status.ok()) {
      memory->writable = region.access == Access::kReadWrite;
      absl::MutexLock lock(&mutex_);
      memory_.emplace(region_id, std::move(memory));
    }
    shared_fd->Reset();
    done(status);
  });
}

void FakeWorkerPool::CloseRegion(uint64_t region_id, StatusCallback done) {
  Post([this, region_id, done = std::move(done)] {
    bool known = false;
    {
      absl::MutexLock lock(&mutex_);
      known = memory_.erase(region_id) > 0;
    }
    done(known ? absl::OkStatus() : absl::NotFoundError("region is not mapped"));
  });
}

void FakeWorkerPool::AllocateTensor(uint64_t region_id, uint64_t byte_size, int, AllocateCallback done) {
  Post([this, region_id, byte_size, done = std::move(done)] {
    if (auto failure = TakeFailure(&FakeWorkerPool::fail_control_)) {
      done(*failure);
      return;
    }
    auto memory = std::make_shared<Memory>();
    memory->allocated.resize(byte_size);
    {
      absl::MutexLock lock(&mutex_);
      memory_.emplace(region_id, std::move(memory));
    }
    done(0);
  });
}

void FakeWorkerPool::AllocatePool(uint64_t region_id, uint64_t byte_size, WorkerMask, PoolCallback done) {
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(byte_size);
  const UniqueFd own = fd.ok() ? fd->Duplicate() : UniqueFd();
  auto shared_fd = std::make_shared<absl::StatusOr<UniqueFd>>(std::move(fd));
  MapRegion(region_id, {RegionKind::kPool, Access::kReadWrite, byte_size}, own.Duplicate(),
            [shared_fd, done = std::move(done)](const absl::Status& status) {
              if (!status.ok()) return done(status);
              done(PoolMemory{kFakeGpu, MaskOf(0), *std::move(*shared_fd)});
            });
}

absl::StatusOr<SubmittedJob> FakeWorkerPool::Submit(const JobDescriptor& descriptor, WorkerMask, JobCallback done) {
  if (auto failure = TakeFailure(&FakeWorkerPool::fail_submit_)) return *failure;
  JobDescriptor job = descriptor;
  job.job_id = next_job_id_.fetch_add(1);
  jobs_queued_.fetch_add(1);
  Post([this, job, done = std::move(done)] {
    auto failure = TakeFailure(&FakeWorkerPool::fail_job_);
    const JobCompletion completion = Execute(job);
    jobs_queued_.fetch_sub(1);
    if (failure) {
      done(*failure, JobCompletion{});
      return;
    }
    const absl::Status status = completion.code == 0 ? absl::OkStatus()
                                                     : absl::Status(static_cast<absl::StatusCode>(completion.code),
                                                                    Describe(completion.reason));
    done(status, completion);
  });
  return SubmittedJob{0, job.job_id};
}

void FakeWorkerPool::Prepare(const PrepareShape&, PrepareCallback done) {
  Post([done = std::move(done)] {
    ControlReply reply;
    reply.kernels_ready = 1;
    done(reply);
  });
}

std::vector<WorkerSnapshot> FakeWorkerPool::Snapshot() const {
  WorkerSnapshot snapshot;
  snapshot.traits.device = "fake";
  snapshot.traits.name = "Fake worker";
  snapshot.traits.memory_bytes = uint64_t{1} << 30;
  snapshot.traits.cores = 1;
  snapshot.state = WorkerState::kReady;
  snapshot.jobs_in_flight = jobs_queued();
  return {snapshot};
}

void FakeWorkerPool::Pause() {
  absl::MutexLock lock(&mutex_);
  paused_ = true;
}

void FakeWorkerPool::Resume() {
  absl::MutexLock lock(&mutex_);
  paused_ = false;
}

void FakeWorkerPool::Drain() {
  absl::MutexLock lock(&mutex_);
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return tasks_.empty() && !busy_; };
  mutex_.Await(absl::Condition(&idle));
}

void FakeWorkerPool::SetJobHandler(JobHandler handler) {
  absl::MutexLock lock(&mutex_);
  handler_ = std::move(handler);
}

void FakeWorkerPool::FailNextControl(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_control_ = std::move(status);
}

void FakeWorkerPool::FailNextSubmit(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_submit_ = std::move(status);
}

void FakeWorkerPool::FailNextJob(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_job_ = std::move(status);
}

size_t FakeWorkerPool::region_count() const {
  absl::MutexLock lock(&mutex_);
  return memory_.size();
}

size_t FakeWorkerPool::jobs_queued() const { return jobs_queued_.load(); }

size_t FakeWorkerPool::jobs_to_cancel() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_.size();
}

std::byte* FakeWorkerPool::Bytes(uint64_t region_id, uint64_t offset, uint64_t byte_size) const {
  absl::MutexLock lock(&mutex_);
  const auto found = memory_.find(region_id);
  if (found == memory_.end()) return nullptr;
  Memory& memory = *found->second;
  const bool allocated = memory.mapping.data() == nullptr;
  const uint64_t size = allocated ? memory.allocated.size() : memory.mapping.byte_size();
  if (offset > size || byte_size > size - offset) return nullptr;
  return (allocated ? memory.allocated.data() : memory.mapping.data()) + offset;
}

void FakeWorkerPool::Cancel(const SubmittedJob& job) {
  absl::MutexLock lock(&mutex_);
  cancelled_.insert(job.job_id);
}

void FakeWorkerPool::Run() {
  while (true) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      busy_ = false;
      auto ready = [this]()
                       ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !paused_ && (!tasks_.empty() || stopping_); };
      mutex_.Await(absl::Condition(&ready));
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      busy_ = true;
    }
    task();
  }
}

void FakeWorkerPool::Post(std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
}

std::optional<absl::Status> FakeWorkerPool::TakeFailure(std::optional<absl::Status> FakeWorkerPool::*slot) {
  absl::MutexLock lock(&mutex_);
  return std::exchange(this->*slot, std::nullopt);
}

JobCompletion FakeWorkerPool::Execute(const JobDescriptor& job) {
  JobHandler handler;
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    cancelled = cancelled_.erase(job.job_id) > 0;
    handler = handler_;
  }
  JobCompletion completion;
  if (cancelled) {
    completion = Failure(JobField::kJob, Rule::kCancelled);
  } else if (job.op == Op::kCopy) {
    completion = Copy(job);
  } else if (handler) {
    completion = handler(job);
  } else {
    completion = Failure(JobField::kOp, Rule::kUnsupported);
  }
  completion.job_id = job.job_id;
  return completion;
}

JobCompletion FakeWorkerPool::Copy(const JobDescriptor& job) const {
  const OperandDescriptor& from = job.operand(OperandIndex::kA);
  const OperandDescriptor& to = job.operand(OperandIndex::kD);
  const auto byte_size = static_cast<uint64_t>(from.shape[0]);
  const std::byte* source = Bytes(from.region, from.offset, byte_size);
  std::byte* target = Bytes(to.region, to.offset, byte_size);
  if (source == nullptr) return Failure(JobField::kA, Rule::kOutsideRegion);
  if (target == nullptr) return Failure(JobField::kD, Rule::kOutsideRegion);
  std::memcpy(target, source, byte_size);
  JobCompletion completion;
  completion.batch_jobs = 1;
  return completion;
}

}  // namespace gemmd
