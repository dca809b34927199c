// SPDX-License-Identifier: Apache-2.0
#include "gpu/worker.h"

#include "gpu/job_check.h"
#include "proto/control.h"
#include "proto/cores.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

namespace gemmd {
namespace {

// While the front end is behind with its completions nobody rings when there is room again, so the loop looks.
constexpr absl::Duration kBacklogPoll = absl::Microseconds(100);

// A front end that does not read its completions for so long gets no more of them.
constexpr uint64_t kGoodbyeNanos = 500'000'000;

constexpr uint64_t kFrontEndRing = 1;

constexpr Reason kNotStarted{.field = JobField::kDevice, .rule = Rule::kNotStarted};

bool HasManyCores() { return UsableCores() > 1; }

JobCompletion Refusal(uint64_t job_id, const Reason& reason) {
  JobCompletion completion;
  completion.job_id = job_id;
  completion.code = CodeOf(reason.rule);
  completion.reason = reason;
  return completion;
}

}  // namespace

Worker::AttachedRing::AttachedRing(uint64_t ring_id, JobRing memory)
    : id(ring_id),
      ring(std::move(memory)),
      submissions(ring.submissions(), ring.descriptor_slots(), ring.slots()),
      completions(ring) {}

Worker::Worker(Device& device, const RegionTable& regions, const WorkerCounters& counters, WorkerOptions options)
    : device_(device),
      regions_(regions),
      merging_(options.limits.merging),
      spin_ns_(HasManyCores() ? options.spin_ns : 0),
      spin_beside_ns_(spin_ns_ > 0 ? options.spin_beside_ns : 0),
      faults_(std::move(options.faults)),
      gauges_(counters.gauges()),
      meter_(counters.counts()),
      batcher_(options.limits, [&device](const Gemm& gemm) { return device.PredictNanos(gemm); }) {}

absl::Status Worker::AttachRing(JobRing ring) {
  absl::MutexLock lock(&mutex_);
  if (!rings_.empty()) return absl::FailedPreconditionError("ring: expected one per worker, got a second one");
  rings_.push_back(std::make_unique<AttachedRing>(kFrontEndRing, std::move(ring)));
  front_end_ring_.store(rings_.back().get(), std::memory_order_release);
  return absl::OkStatus();
}

void Worker::Stop() {
  absl::MutexLock lock(&mutex_);  // Wakes WaitForRing, whose condition this changes.
  stopping_.store(true, std::memory_order_seq_cst);
  for (const auto& ring : rings_) ring->submissions.Interrupt();
}

int Worker::Run() {
  if (!WaitForRing()) return 0;
  AttachedRing& ring = *front_end_ring_.load(std::memory_order_acquire);
  while (!stopping_.load(std::memory_order_acquire)) {
    ring.completions.Flush();
    const bool has_read = ReadRing(ring);
    if (ring_is_broken_) return kExitProtocolError;
    ExpireJobs();
    SubmitBatches();
    PublishQueue();
    if (!device_.Healthy().ok()) return EndAfterFault(ring);
    if (!has_read) Wait(ring);
  }
  return 0;
}

int Worker::EndAfterFault(AttachedRing& ring) {
  device_.Wait();  // What the fault failed still gets its answers.
  for (const Job& job : batcher_.TakeAll()) Finish(job, Refusal(job.job_id, kNotStarted));
  JobDescriptor descriptor;
  while (ring.submissions.Read(descriptor) == RingRead::kItem) {
    if (descriptor.op != Op::kCancel) ring.completions.Write(Refusal(descriptor.job_id, kNotStarted));
  }
  const uint64_t give_up_ns = MonotonicNanos() + kGoodbyeNanos;
  while (ring.completions.has_backlog() && MonotonicNanos() < give_up_ns) {
    ring.completions.Flush();
    absl::SleepFor(kBacklogPoll);
  }
  return kExitDeviceFault;
}

// False if Stop came first.
bool Worker::WaitForRing() {
  const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !rings_.empty() || stopping_.load(); };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&ready));
  return !rings_.empty();
}

// True if something was read.
bool Worker::ReadRing(AttachedRing& ring) {
  JobDescriptor descriptor;
  for (int reads = 0; reads < kMaxReadsPerTurn; ++reads) {
    // Whoever does not take its completions gets no further jobs done: this bounds the backlog by the jobs in flight.
    if (ring.completions.has_backlog()) return reads > 0;
    switch (ring.submissions.Read(descriptor)) {
      case RingRead::kEmpty:
        return reads > 0;
      case RingRead::kBroken:
        // Fatal because this ring is the front end's; a client's would only be dropped.
        ring_is_broken_ = true;
        return reads > 0;
      case RingRead::kItem:
        Accept(ring, descriptor);
    }
  }
  return true;
}

void Worker::Accept(AttachedRing& ring, const JobDescriptor& descriptor) {
  if (descriptor.op == Op::kCancel) return Cancel(ring, descriptor.cancel_job_id);
  const bool alone = batches_in_flight_.load(std::memory_order_seq_cst) == 0;
  if (!device_.Healthy().ok()) return ring.completions.Write(Refusal(descriptor.job_id, kNotStarted));
  const uint64_t now_ns = MonotonicNanos();
  last_pause_ns_ = now_ns - std::min(now_ns, busy_until_ns_);
  busy_until_ns_ = now_ns;
  auto checked = CheckJob(descriptor, [this](uint64_t region) { return regions_.Find(region); });
  if (const Reason* reason = std::get_if<Reason>(&checked)) {
    // The check reads from the device. What broke it meanwhile was a batch, if there was one.
    const bool others_fault = reason->rule == Rule::kDeviceLost && !alone;
    return ring.completions.Write(Refusal(descriptor.job_id, others_fault ? kNotStarted : *reason));
  }
  Job job{.job_id = descriptor.job_id,
          .session = descriptor.session,
          .ring = ring.id,
          .deadline_ns = descriptor.deadline_ns,
          .priority = descriptor.priority,
          .gemm = std::get<Gemm>(std::move(checked))};
  // A job that must wait may share a launch with those that come meanwhile.
  const bool waits = batcher_.queued_jobs() > 0 || !DeviceHasRoom();
  if (merging_ && waits && job.gemm.masked_on_device) ReadMaskedRows(job.gemm);
  Reason reason;
  {
    absl::MutexLock lock(&mutex_);
    reason = outputs_.Add(job.gemm);
  }
  if (reason.rule != Rule::kNone) return ring.completions.Write(Refusal(job.job_id, reason));
  if (batcher_.Add(std::move(job), now_ns)) {
    busy_until_ns_ = now_ns + std::min(batcher_.queued_predicted_ns(), spin_beside_ns_);
    return;
  }
  // Refused, so `job` is untouched. NOLINTBEGIN(bugprone-use-after-move)
  const auto limit = static_cast<int64_t>(batcher_.queued_jobs());
  Finish(job, Refusal(job.job_id,
                      {.field = JobField::kDevice, .rule = Rule::kQueueFull, .expected = limit, .got = limit + 1}));
  // NOLINTEND(bugprone-use-after-move)
}

void Worker::Cancel(const AttachedRing& ring, uint64_t job_id) {
  const std::optional<Job> job = batcher_.Cancel(ring.id, job_id);
  if (job) Finish(*job, Refusal(job_id, {.field = JobField::kJob, .rule = Rule::kCancelled}));
}

void Worker::ExpireJobs() {
  const uint64_t earliest_ns = batcher_.EarliestDeadline();
  if (earliest_ns == 0) return;
  const uint64_t now_ns = MonotonicNanos();
  if (earliest_ns > now_ns) return;
  for (const Job& job : batcher_.TakeExpired(now_ns)) {
    Finish(job, Refusal(job.job_id, {.field = JobField::kJob, .rule = Rule::kDeadline}));
  }
}

bool Worker::DeviceHasRoom() const {
  return batches_in_flight_.load(std::memory_order_seq_cst) < device_.traits().max_batches_in_flight;
}

void Worker::SubmitBatches() {
  // What does not go to a broken device can go to its successor.
  while (batcher_.queued_jobs() > 0 && DeviceHasRoom() && device_.Healthy().ok()) {
    std::optional<Batch> batch = batcher_.Take(MonotonicNanos());
    if (!batch) return;  // All that waited has expired; the next turn answers it.
    batches_in_flight_.fetch_add(1, std::memory_order_seq_cst);
    meter_.Start(MonotonicNanos());
    if (const std::optional<DeviceFault> fault = faults_.Take()) device_.InjectFault(*fault);
    // The device calls back on any thread, perhaps inside Submit; no lock is held here.
    device_.Submit(*std::move(batch), [this](const Batch& done, const BatchResult& result) { OnDone(done, result); });
  }
}

void Worker::PublishQueue() {
  SetGauge(gauges_.queued_jobs, batcher_.queued_jobs());
  SetGauge(gauges_.queued_ns, batcher_.queued_predicted_ns());
}

void Worker::OnDone(const Batch& batch, const BatchResult& result) {
  // Before the completions, so that whoever has an answer finds it counted.
  meter_.Finish(batch, result);
  for (size_t i = 0; i < batch.jobs.size(); ++i) {
    const Job& job = batch.jobs[i];
    JobCompletion completion = Refusal(job.job_id, result.reasons[i]);  // Rule::kNone is success.
    completion.launched_ns = result.launched_ns;
    completion.device_ns = result.finished_ns - std::min(result.finished_ns, result.launched_ns);
    completion.batch_jobs = static_cast<uint32_t>(batch.jobs.size());
    if (completion.code == 0) completion.flops = Flops(job.gemm);
    Finish(job, completion);
  }
  const bool healthy = device_.Healthy().ok();
  AttachedRing* const ring = front_end_ring_.load(std::memory_order_acquire);
  // Last: from here on the loop may end, and the worker with it once the device is done.
  batches_in_flight_.fetch_sub(1, std::memory_order_seq_cst);
  if (waits_for_room_.load(std::memory_order_seq_cst) || !healthy) ring->submissions.Interrupt();
}

// The output is free before the completion says so: a client may reuse it at once.
void Worker::Finish(const Job& job, const JobCompletion& completion) {
  AttachedRing* ring = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    outputs_.Remove(job.gemm);
    const auto found = std::find_if(rings_.begin(), rings_.end(), [&](const auto& r) { return r->id == job.ring; });
    if (found != rings_.end()) ring = found->get();
  }
  if (ring != nullptr) ring->completions.Write(completion);
}

// Where jobs come in quick succession, until the next should have come; else a quarter, in case they begin to.
uint64_t Worker::SpinNanos() const { return last_pause_ns_ < spin_ns_ ? spin_ns_ : spin_ns_ / 4; }

void Worker::Wait(AttachedRing& ring) {
  if (ring.completions.has_backlog()) {
    absl::SleepFor(kBacklogPoll);
    return;
  }
  // Either OnDone sees that the loop waits, or the loop sees that there is room.
  waits_for_room_.store(batcher_.queued_jobs() > 0, std::memory_order_seq_cst);
  const bool can_submit = batcher_.queued_jobs() > 0 && DeviceHasRoom();
  if (!can_submit && !stopping_.load(std::memory_order_acquire)) {
    const uint64_t now_ns = MonotonicNanos();
    const uint64_t spin_until_ns = busy_until_ns_ + SpinNanos();
    const SpinPolicy spin{spin_until_ns > now_ns ? spin_until_ns - now_ns : 0};
    ring.submissions.Wait(batcher_.EarliestDeadline(), spin);
  }
  waits_for_room_.store(false, std::memory_order_relaxed);
}

}  // namespace gemmd
