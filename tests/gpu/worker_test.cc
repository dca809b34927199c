// SPDX-License-Identifier: Apache-2.0
#include "gpu/worker.h"

#include "proto/control.h"
#include "tests/gpu/fake_device.h"
#include "tests/gpu/job_samples.h"

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include <gtest/gtest.h>

#include <cstring>
#include <linux/futex.h>
#include <map>
#include <memory>
#include <optional>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

using namespace testing;  // NOLINT: the samples.

constexpr uint64_t kPatienceNanos = 20'000'000'000;

// A worker on a fake device, served from this thread as a front end does.
class WorkerTest : public ::testing::Test {
 protected:
  void Start(FakeScript script, WorkerOptions options = {}, uint32_t slots = 64) {
    device_ = std::make_unique<FakeDevice>(script);
    worker_ = std::make_unique<Worker>(*device_, regions_.table, counters_, options);
    auto ring = JobRing::Create(slots);
    ASSERT_TRUE(ring.ok());
    ring_.emplace(*std::move(ring));
    auto opened = JobRing::Open(UniqueFd(dup(ring_->fd())));
    ASSERT_TRUE(opened.ok());
    ASSERT_TRUE(worker_->AttachRing(*std::move(opened)).ok());
    writer_ = SubmissionWriter(ring_->submissions(), ring_->descriptor_slots(), slots);
    reader_ = std::make_unique<CompletionReader>(ring_->completions(), ring_->completion_slots(), slots);
    loop_ = std::thread([this] { exit_status_ = worker_->Run(); });
  }

  void TearDown() override {
    if (loop_.joinable()) {
      worker_->Stop();
      loop_.join();
    }
    device_->Wait();
  }

  int JoinLoop() {
    loop_.join();
    return exit_status_;
  }

  // A valid job whose output is the `place`-th of many that do not overlap.
  static JobDescriptor SampleJob(uint64_t id, uint64_t place) {
    JobDescriptor job = DenseJob();
    job.job_id = id;
    job.operand(OperandIndex::kD).offset = 0x10000 + place * 0x2000;
    return job;
  }

  void Submit(const JobDescriptor& job) { ASSERT_TRUE(writer_.Write(job)); }

  JobCompletion Receive() {
    JobCompletion completion;
    const uint64_t deadline = MonotonicNanos() + kPatienceNanos;
    while (reader_->Read(completion) != RingRead::kItem) {
      if (MonotonicNanos() > deadline) {
        ADD_FAILURE() << "no completion";
        return {};
      }
      reader_->Wait(deadline, {});
    }
    return completion;
  }

  // Waits until so many jobs wait for the device.
  void AwaitQueued(uint64_t jobs) {
    const uint64_t deadline = MonotonicNanos() + kPatienceNanos;
    while (counters_.ReadGauges().queued_jobs != jobs) {
      ASSERT_LT(MonotonicNanos(), deadline) << counters_.ReadGauges().queued_jobs << " jobs wait";
      std::this_thread::yield();
    }
  }

  // A busy device with three more jobs on the same weights that wait for it.
  void LetThreeJobsWait() {
    Submit(SampleJob(1, 1));
    device_->AwaitSubmitted(1);
    for (uint64_t id = 2; id <= 4; ++id) Submit(SampleJob(id, id));
    AwaitQueued(3);
    EXPECT_EQ(device_->FinishOne(), 1u);
    EXPECT_EQ(Receive().batch_jobs, 1u);
  }

  SampleRegions regions_;
  const WorkerCounters counters_ = *WorkerCounters::Create();
  std::unique_ptr<FakeDevice> device_;
  std::unique_ptr<Worker> worker_;
  std::optional<JobRing> ring_;
  SubmissionWriter writer_;
  std::unique_ptr<CompletionReader> reader_;
  std::thread loop_;
  int exit_status_ = -1;
};

TEST_F(WorkerTest, AJobIsAnsweredWithItsTimes) {
  Start({.delay_ns = 1'000'000});
  Submit(SampleJob(42, 0));
  const JobCompletion completion = Receive();
  EXPECT_EQ(completion.job_id, 42u);
  EXPECT_EQ(completion.code, 0u);
  EXPECT_EQ(completion.batch_jobs, 1u);
  EXPECT_GE(completion.device_ns, 1'000'000u);
}

TEST_F(WorkerTest, OnlyRowsThatAreComputedCountAsFlops) {
  const double row = 2.0 * kN * kK;
  Start({});
  Submit(SampleJob(1, 0));
  EXPECT_EQ(Receive().flops, row * kM);
  const JobDescriptor masked = MaskedJob();
  regions_.SetGroups(std::vector<int32_t>{0, 3, 7});
  Submit(masked);
  EXPECT_EQ(Receive().flops, row * (3 + 7));
  const JobDescriptor padded = ContiguousJob(GroupEncoding::kRowIndex);
  std::vector<int32_t> index(kM, -1);
  index[0] = index[1] = 2;
  regions_.SetGroups(index);
  Submit(padded);
  EXPECT_EQ(Receive().flops, row * 2);
}

TEST_F(WorkerTest, AFailedJobHasNoFlops) {
  Start({.fail_every = 1});
  Submit(SampleJob(1, 0));
  const JobCompletion completion = Receive();
  EXPECT_NE(completion.code, 0u);
  EXPECT_EQ(completion.flops, 0);
}

TEST_F(WorkerTest, AnInlineDeviceAnswersManyJobs) {
  Start({});
  for (uint64_t id = 1; id <= 1000; ++id) {
    Submit(SampleJob(id, 0));
    EXPECT_EQ(Receive().job_id, id);
  }
}

TEST_F(WorkerTest, AnIllegalJobIsRefusedWithItsReason) {
  Start({});
  JobDescriptor job = SampleJob(7, 0);
  job.operand(OperandIndex::kB).shape[1] = 128;
  Submit(job);
  const JobCompletion completion = Receive();
  EXPECT_EQ(completion.code, CodeOf(Rule::kExtent));
  EXPECT_EQ(completion.reason.field, JobField::kB);
  EXPECT_EQ(completion.batch_jobs, 0u);
}

TEST_F(WorkerTest, JobsOnTheSameWeightsShareALaunch) {
  Start({.manual = true});
  LetThreeJobsWait();
  EXPECT_EQ(device_->FinishOne(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Receive().batch_jobs, 3u);
}

TEST_F(WorkerTest, WithoutMergingEachJobHasALaunchOfItsOwn) {
  WorkerOptions options;
  options.limits.merging = false;
  Start({.manual = true}, options);
  LetThreeJobsWait();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(device_->FinishOne(), 1u);
    EXPECT_EQ(Receive().batch_jobs, 1u);
  }
}

// All of it on the device, the rows of its groups too.
JobDescriptor MaskedJobOnTheDevice(SampleRegions& regions, uint64_t id) {
  constexpr uint64_t kMegabyte = 1 << 20, kGroupsOffset = 0xf0000;
  const uint64_t region = 100 + id;
  const auto memory = std::make_shared<HeapMemory>(kMegabyte, true);
  const int32_t rows[kG] = {3, -1, 1000};
  std::memcpy(memory->data() + kGroupsOffset, rows, sizeof(rows));
  regions.table.Add(region, memory, Access::kReadWrite);
  JobDescriptor job = MaskedJob();
  job.job_id = id;
  for (const OperandIndex index : {OperandIndex::kA, OperandIndex::kSfa, OperandIndex::kD, OperandIndex::kGroups})
    job.operand(index).region = region;
  job.operand(OperandIndex::kGroups).offset = kGroupsOffset;
  return job;
}

TEST_F(WorkerTest, MaskedJobsThatWaitShareALaunchThoughOnlyTheDeviceKnowsTheirRows) {
  std::vector<JobDescriptor> jobs;
  for (uint64_t id = 1; id <= 4; ++id) jobs.push_back(MaskedJobOnTheDevice(regions_, id));
  Start({.manual = true});
  Submit(jobs[0]);
  device_->AwaitSubmitted(1);
  for (size_t i = 1; i < 4; ++i) Submit(jobs[i]);
  AwaitQueued(3);
  EXPECT_EQ(device_->FinishOne(), 1u);
  EXPECT_EQ(Receive().flops, 2.0 * kG * kM * kN * kK) << "a job that need not wait keeps its rows on the device";
  EXPECT_EQ(device_->FinishOne(), 3u);
  for (int i = 0; i < 3; ++i) {
    const JobCompletion completion = Receive();
    EXPECT_EQ(completion.batch_jobs, 3u);
    EXPECT_EQ(completion.flops, 2.0 * (3 + kM) * kN * kK);
  }
}

TEST_F(WorkerTest, AnOutputInFlightIsRefusedUntilItIsDone) {
  Start({.manual = true});
  Submit(SampleJob(1, 0));
  Submit(SampleJob(2, 0));
  const JobCompletion refused = Receive();
  EXPECT_EQ(refused.job_id, 2u);
  EXPECT_EQ(refused.code, CodeOf(Rule::kOverlapsInFlight));
  device_->FinishOne();
  EXPECT_EQ(Receive().job_id, 1u);
  Submit(SampleJob(3, 0));
  device_->FinishOne();
  EXPECT_EQ(Receive().code, 0u);
}

TEST_F(WorkerTest, AJobThatExpiresInTheQueueIsNeverLaunched) {
  Start({.manual = true});
  Submit(SampleJob(1, 0));
  device_->AwaitSubmitted(1);
  JobDescriptor job = SampleJob(2, 1);
  job.deadline_ns = MonotonicNanos() + 3'000'000;
  Submit(job);
  const JobCompletion expired = Receive();
  EXPECT_EQ(expired.job_id, 2u);
  EXPECT_EQ(expired.code, CodeOf(Rule::kDeadline));
  EXPECT_EQ(expired.batch_jobs, 0u);
  device_->FinishOne();
}

TEST_F(WorkerTest, ACancelledJobIsAnsweredAndNotLaunched) {
  Start({.manual = true});
  Submit(SampleJob(1, 0));
  device_->AwaitSubmitted(1);
  Submit(SampleJob(2, 1));
  JobDescriptor cancel;
  cancel.op = Op::kCancel;
  for (const uint64_t id : {2, 1, 77}) {  // Only the first waits.
    cancel.cancel_job_id = id;
    Submit(cancel);
  }
  const JobCompletion cancelled = Receive();
  EXPECT_EQ(cancelled.job_id, 2u);
  EXPECT_EQ(cancelled.code, CodeOf(Rule::kCancelled));
  device_->FinishOne();
  EXPECT_EQ(Receive().code, 0u);
}

TEST_F(WorkerTest, AFullQueueRefusesAtOnce) {
  WorkerOptions options;
  options.limits.max_queued_jobs = 2;
  Start({.manual = true}, options);
  Submit(SampleJob(1, 0));
  device_->AwaitSubmitted(1);
  for (uint64_t id = 2; id <= 4; ++id) Submit(SampleJob(id, id));
  const JobCompletion refused = Receive();
  EXPECT_EQ(refused.job_id, 4u);
  EXPECT_EQ(refused.code, CodeOf(Rule::kQueueFull));
  EXPECT_EQ(refused.reason.expected, 2);
  device_->FinishOne();
  device_->FinishOne();
}

TEST_F(WorkerTest, ScriptedFailuresReachTheirJobsOnly) {
  Start({.fail_every = 2});
  Submit(SampleJob(1, 0));
  EXPECT_EQ(Receive().code, 0u);
  Submit(SampleJob(2, 0));
  EXPECT_EQ(Receive().code, CodeOf(Rule::kDeviceFailed));
  Submit(SampleJob(3, 0));
  EXPECT_EQ(Receive().code, 0u);
}

TEST_F(WorkerTest, ADeviceBeyondRepairEndsTheLoopAfterItsAnswers) {
  Start({.delay_ns = 1, .fault_after_jobs = 1});
  Submit(SampleJob(1, 0));
  EXPECT_EQ(Receive().code, CodeOf(Rule::kDeviceFailed));
  EXPECT_EQ(JoinLoop(), kExitDeviceFault);
}

// Memory of the device, which breaks it when it is read.
class BreakingMemory : public DeviceMemory {
 public:
  BreakingMemory(FakeDevice& device, absl::Notification& read, absl::Notification& go_on)
      : device_(device), read_(read), go_on_(go_on) {}
  uint64_t byte_size() const override { return kRegionBytes; }
  bool on_device() const override { return true; }
  absl::Status ReadBytes(uint64_t, uint64_t, void*) const override {
    read_.Notify();
    go_on_.WaitForNotification();
    device_.Break();
    return absl::DataLossError("broken");
  }

 private:
  FakeDevice& device_;
  absl::Notification& read_;
  absl::Notification& go_on_;
};

// Jobs of which the first and the last have group arrays in memory that breaks the device.
class BrokenDeviceTest : public WorkerTest {
 protected:
  // What the first, one that reads nothing and the last get when the device breaks under the first.
  std::vector<Rule> BreakUnderTheFirst() {
    constexpr uint64_t kBreakingRegion = 9;
    absl::Notification read;
    absl::Notification go_on;
    regions_.table.Add(kBreakingRegion, std::make_shared<BreakingMemory>(*device_, read, go_on), Access::kReadOnly);
    JobDescriptor grouped = ContiguousJob();
    grouped.operand(OperandIndex::kGroups).region = kBreakingRegion;
    grouped.job_id = 12;
    Submit(grouped);
    read.WaitForNotification();
    Submit(SampleJob(13, 3));
    grouped.job_id = 14;
    Submit(grouped);
    go_on.Notify();
    std::map<uint64_t, Rule> rules;
    for (int i = 0; i < 3; ++i) {
      const JobCompletion completion = Receive();
      rules[completion.job_id] = completion.reason.rule;
    }
    return {rules[12], rules[13], rules[14]};
  }
};

TEST_F(BrokenDeviceTest, AReadThatBreaksItFailsItsOwnJobOnly) {
  Start({.manual = true});
  EXPECT_EQ(BreakUnderTheFirst(), (std::vector<Rule>{Rule::kDeviceLost, Rule::kNotStarted, Rule::kNotStarted}));
  EXPECT_EQ(JoinLoop(), kExitDeviceFault);
}

TEST_F(BrokenDeviceTest, ABatchThatBreaksItFailsNoJobWhoseGroupsAreBeingRead) {
  Start({.manual = true});
  Submit(SampleJob(1, 1));
  device_->AwaitSubmitted(1);
  EXPECT_EQ(BreakUnderTheFirst(), (std::vector<Rule>(3, Rule::kNotStarted)));
  device_->FinishOne();
  EXPECT_EQ(Receive().reason.rule, Rule::kDeviceFailed);
  EXPECT_EQ(JoinLoop(), kExitDeviceFault);
}

TEST_F(WorkerTest, AnImpossiblePositionEndsTheLoop) {
  Start({});
  // A hand-made writer that is further ahead than the ring is long; the loop may sleep, so it also rings.
  ring_->submissions()->written.store(1'000'000);
  while (ring_->submissions()->sleeping.load() != 0) {
    ring_->submissions()->doorbell.fetch_add(1);
    syscall(SYS_futex, &ring_->submissions()->doorbell, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
  EXPECT_EQ(JoinLoop(), kExitProtocolError);
}

TEST_F(WorkerTest, CompletionsThatNobodyReadsAreKept) {
  Start({}, {}, 2);
  constexpr uint64_t kJobs = 50;
  uint64_t received = 0;
  for (uint64_t id = 1; id <= kJobs;) {
    if (writer_.Write(SampleJob(id, id))) {
      ++id;
      continue;
    }
    EXPECT_EQ(Receive().job_id, ++received);  // The ring is full until completions are taken.
  }
  while (received < kJobs) EXPECT_EQ(Receive().job_id, ++received);
}

TEST_F(WorkerTest, SeveralBatchesMayBeInFlight) {
  WorkerOptions options;
  options.limits.merging = false;
  Start({.max_batches_in_flight = 3, .manual = true}, options);
  for (uint64_t id = 1; id <= 5; ++id) Submit(SampleJob(id, id));
  device_->AwaitSubmitted(3);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(device_->FinishOne(), 1u);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Receive().code, 0u);
}

TEST_F(WorkerTest, ManyJobsOnADeviceWithItsOwnThreadAreAllAnsweredOnce) {
  Start({.delay_ns = 1000, .max_batches_in_flight = 2}, {}, 256);
  constexpr uint64_t kJobs = 2000;
  std::map<uint64_t, int> answers;
  uint64_t next = 1;
  while (answers.size() < kJobs) {
    while (next <= kJobs && next - answers.size() <= 32 && writer_.Write(SampleJob(next, next % 64))) ++next;
    const JobCompletion completion = Receive();
    ASSERT_EQ(++answers[completion.job_id], 1);
  }
}

TEST_F(WorkerTest, ASecondRingIsRefused) {
  Start({});
  auto ring = JobRing::Create(2);
  EXPECT_EQ(worker_->AttachRing(*std::move(ring)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerTest, StopEndsALoopWithoutARing) {
  FakeDevice device({});
  Worker worker(device, regions_.table, counters_, {});
  std::thread loop([&] { EXPECT_EQ(worker.Run(), 0); });
  worker.Stop();
  loop.join();
  Start({});
}

}  // namespace
}  // namespace gemmd
