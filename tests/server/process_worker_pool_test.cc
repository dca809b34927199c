// SPDX-License-Identifier: Apache-2.0
// The pool with real processes: gemmd-worker-fake, which copies bytes, fails and hangs as its flags say.
#include "server/process_worker_pool.h"

#include "tests/server/service_fixture.h"

#include "absl/synchronization/notification.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <fstream>
#include <memory>
#include <optional>
#include <signal.h>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

constexpr uint64_t kMillisecond = 1'000'000;
constexpr uint64_t kBytes = 4096;
constexpr absl::Duration kPatience = absl::Seconds(20);

// Waits for the one call of a callback.
template <typename T>
class Answer {
 public:
  void Set(T value) {
    value_ = std::move(value);
    done_.Notify();
  }
  bool is_set() const { return done_.HasBeenNotified(); }
  T Get() {
    if (done_.WaitForNotificationWithTimeout(kPatience)) return *std::move(value_);
    ADD_FAILURE() << "no answer";
    return T();
  }

 private:
  std::optional<T> value_;
  absl::Notification done_;
};

struct JobAnswer {
  absl::Status status;
  JobCompletion completion;
};

JobDescriptor CopyJob(uint64_t from, uint64_t to) {
  JobDescriptor job;
  job.op = Op::kCopy;
  for (const auto& [index, region] : {std::pair(OperandIndex::kA, from), std::pair(OperandIndex::kD, to)}) {
    OperandDescriptor& operand = job.operand(index);
    operand.region = region;
    operand.dtype = DType::kU8;
    operand.rank = 1;
    operand.shape[0] = kBytes;
    operand.strides[0] = 1;
  }
  return job;
}

std::vector<std::string> LinesOf(const std::string& path) {
  std::ifstream stream(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

class ProcessWorkerPoolTest : public ::testing::Test {
 protected:
  static ProcessWorkerPoolOptions Options(int workers, const std::vector<std::string>& flags = {}) {
    ProcessWorkerPoolOptions options;
    options.supervisor.worker_binary = GEMMD_WORKER_FAKE;
    options.supervisor.workers.assign(static_cast<size_t>(workers), flags);
    options.supervisor.restart.first_backoff_ns = kMillisecond;
    options.supervisor.exit_grace_ns = 200 * kMillisecond;
    options.devices.assign(static_cast<size_t>(workers), "cpu");
    return options;
  }

  void Start(const ProcessWorkerPoolOptions& options) {
    pool_ = std::make_unique<ProcessWorkerPool>(options, [this] { ++changes_; });
    pool_->Start();
  }

  void StartReady(int workers, const std::vector<std::string>& flags = {}) {
    Start(Options(workers, flags));
    const absl::Status status = pool_->WaitReady();
    ASSERT_TRUE(status.ok()) << status;
  }

  WorkerSnapshot Worker(size_t index = 0) const { return pool_->Snapshot()[index]; }

  // Kills a worker and waits until its successor is ready.
  void Replace(size_t index = 0) {
    const uint32_t restarts = Worker(index).restarts;
    kill(Worker(index).pid, SIGKILL);
    AwaitSuccessor(index, restarts);
  }
  void AwaitSuccessor(size_t index, uint32_t restarts) {
    WaitUntil([&] { return Worker(index).restarts > restarts && Worker(index).state == WorkerState::kReady; });
  }

  // A region of kBytes times `value`; its descriptor stays with the test.
  uint64_t MakeRegion(char value) {
    files_.push_back(SealedMemory(kBytes));
    const std::string bytes(kBytes, value);
    EXPECT_EQ(pwrite(files_.back().get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(kBytes));
    const uint64_t id = pool_->NextRegionId();
    Answer<absl::Status> mapped;
    pool_->MapRegion(id, {RegionKind::kHost, Access::kReadWrite, kBytes}, files_.back().Duplicate(),
                     [&](absl::Status status) { mapped.Set(std::move(status)); });
    const absl::Status status = mapped.Get();
    EXPECT_TRUE(status.ok()) << status;
    return id;
  }

  // The bytes of the region made `index`-th.
  std::string Bytes(size_t index) const {
    std::string bytes(kBytes, '\0');
    EXPECT_EQ(pread(files_[index].get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(kBytes));
    return bytes;
  }

  absl::Status Close(uint64_t region) {
    Answer<absl::Status> closed;
    pool_->CloseRegion(region, [&](absl::Status status) { closed.Set(std::move(status)); });
    return closed.Get();
  }

  absl::StatusOr<SubmittedJob> Submit(const JobDescriptor& job, Answer<JobAnswer>& answer, int worker = kAnyWorker) {
    return pool_->Submit(job, MaskOf(worker), [&answer](absl::Status status, const JobCompletion& completion) {
      answer.Set({std::move(status), completion});
    });
  }

  JobAnswer Run(const JobDescriptor& job, int worker = kAnyWorker) {
    Answer<JobAnswer> answer;
    const absl::StatusOr<SubmittedJob> submitted = Submit(job, answer, worker);
    if (!submitted.ok()) return {submitted.status(), {}};
    return answer.Get();
  }

  void ExpectSuccess(const JobAnswer& answer) {
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.completion.code, 0u) << Describe(answer.completion.reason);
  }

  // Before the pool: events come until it is gone.
  std::atomic<int> changes_{0};
  std::vector<UniqueFd> files_;
  std::unique_ptr<ProcessWorkerPool> pool_;
};

TEST_F(ProcessWorkerPoolTest, WorkersAreReadyOnceTheySaidHello) {
  StartReady(2);
  for (const WorkerSnapshot& worker : pool_->Snapshot()) {
    EXPECT_EQ(worker.state, WorkerState::kReady);
    EXPECT_EQ(worker.traits.name, "fake");
    EXPECT_EQ(worker.restarts, 0u);
    EXPECT_EQ(kill(worker.pid, 0), 0);
  }
  EXPECT_GT(changes_, 0);
}

TEST_F(ProcessWorkerPoolTest, AWorkerThatDoesNotStartIsAnErrorNotAWait) {
  ProcessWorkerPoolOptions options = Options(2);
  options.supervisor.worker_binary = "/bin/false";
  Start(options);
  EXPECT_EQ(pool_->WaitReady(), absl::UnavailableError("worker cpu does not start"));
  Answer<JobAnswer> answer;
  EXPECT_TRUE(absl::IsUnavailable(Submit(CopyJob(1, 2), answer).status()));
}

TEST_F(ProcessWorkerPoolTest, AJobRunsOnARegion) {
  StartReady(1);
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  ExpectSuccess(Run(CopyJob(from, to)));
  EXPECT_EQ(Bytes(1), Bytes(0));
}

TEST_F(ProcessWorkerPoolTest, ARegionIsInEveryWorker) {
  StartReady(2);
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  for (const int worker : {0, 1}) ExpectSuccess(Run(CopyJob(from, to), worker));
}

TEST_F(ProcessWorkerPoolTest, RegionsAreMappedIntoTheSuccessorOfADeadWorker) {
  StartReady(1);
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  Replace();
  EXPECT_EQ(Worker().restarts, 1u);
  ExpectSuccess(Run(CopyJob(from, to)));
  EXPECT_EQ(Bytes(1), Bytes(0));
}

TEST_F(ProcessWorkerPoolTest, WhatIsRegisteredAndClosedWhileAWorkerIsDownHoldsForItsSuccessor) {
  ProcessWorkerPoolOptions options = Options(1);
  options.supervisor.restart.first_backoff_ns = 100 * kMillisecond;
  Start(options);
  ASSERT_TRUE(pool_->WaitReady().ok());
  const uint64_t closed = MakeRegion('a');
  Replace();  // The next death is followed by a pause.
  kill(Worker().pid, SIGKILL);
  WaitUntil([this] { return Worker().state == WorkerState::kDead; });
  const uint64_t from = MakeRegion('c');
  const uint64_t to = MakeRegion('d');
  EXPECT_TRUE(Close(closed).ok());
  AwaitSuccessor(0, 1);
  ExpectSuccess(Run(CopyJob(from, to)));
  EXPECT_EQ(Bytes(2), Bytes(1));
  EXPECT_EQ(Run(CopyJob(closed, to)).completion.reason.rule, Rule::kUnknownRegion);
}

TEST_F(ProcessWorkerPoolTest, ATensorKeepsItsContentAndItsWorkerThroughADeath) {
  StartReady(2);
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  const uint64_t tensor = pool_->NextRegionId();
  Answer<absl::StatusOr<int>> allocated;
  pool_->AllocateTensor(tensor, kBytes, kAnyWorker,
                        [&](absl::StatusOr<int> worker) { allocated.Set(std::move(worker)); });
  const absl::StatusOr<int> worker = allocated.Get();
  ASSERT_TRUE(worker.ok()) << worker.status();
  ExpectSuccess(Run(CopyJob(from, tensor), *worker));
  Replace(static_cast<size_t>(*worker));
  ExpectSuccess(Run(CopyJob(tensor, to), *worker));
  EXPECT_EQ(Bytes(1), Bytes(0));
  EXPECT_EQ(Run(CopyJob(tensor, to), 1 - *worker).completion.reason.rule, Rule::kUnknownRegion);
}

TEST_F(ProcessWorkerPoolTest, TensorsGoWhereMostRoomIs) {
  StartReady(2);
  std::vector<int> tensors_of(2);
  for (int i = 0; i < 4; ++i) {
    Answer<absl::StatusOr<int>> allocated;
    pool_->AllocateTensor(pool_->NextRegionId(), kBytes, kAnyWorker,
                          [&](absl::StatusOr<int> worker) { allocated.Set(std::move(worker)); });
    const absl::StatusOr<int> worker = allocated.Get();
    ASSERT_TRUE(worker.ok()) << worker.status();
    ++tensors_of[static_cast<size_t>(*worker)];
  }
  EXPECT_THAT(tensors_of, ElementsAre(2, 2));
}

TEST_F(ProcessWorkerPoolTest, ATensorGoesWhereItIsToldTo) {
  StartReady(2);
  for (int i = 0; i < 3; ++i) {
    Answer<absl::StatusOr<int>> allocated;
    pool_->AllocateTensor(pool_->NextRegionId(), kBytes, 1,
                          [&](absl::StatusOr<int> worker) { allocated.Set(std::move(worker)); });
    EXPECT_EQ(allocated.Get().value(), 1);
  }
}

TEST_F(ProcessWorkerPoolTest, MemoryOfADeviceIsMappedByTheWorkersOnIt) {
  ProcessWorkerPoolOptions options = Options(3);
  options.devices = {"GPU-a", "GPU-b", "GPU-b"};
  for (size_t i = 0; i < 3; ++i) options.supervisor.workers[i] = {"--device=" + options.devices[i]};
  Start(options);
  ASSERT_TRUE(pool_->WaitReady().ok());
  EXPECT_EQ(pool_->WorkersOn("GPU-a"), 0b001u);
  EXPECT_EQ(pool_->WorkersOn("GPU-b"), 0b110u);
  EXPECT_EQ(pool_->WorkersOn("cpu"), 0u);

  const uint64_t from = MakeRegion('a');
  files_.push_back(SealedMemory(kBytes));
  const uint64_t to = pool_->NextRegionId();
  Answer<absl::Status> mapped;
  pool_->MapRegion(to, {RegionKind::kDevice, Access::kReadWrite, kBytes, pool_->WorkersOn("GPU-b")},
                   files_.back().Duplicate(), [&](absl::Status status) { mapped.Set(std::move(status)); });
  ASSERT_TRUE(mapped.Get().ok());
  ExpectSuccess(Run(CopyJob(from, to), 1));
  ExpectSuccess(Run(CopyJob(from, to), 2));
  EXPECT_EQ(Bytes(1), Bytes(0));
  EXPECT_EQ(Run(CopyJob(from, to), 0).completion.reason.rule, Rule::kUnknownRegion);
  Replace(2);
  ExpectSuccess(Run(CopyJob(from, to), 2));
  EXPECT_EQ(Run(CopyJob(from, to), 0).completion.reason.rule, Rule::kUnknownRegion);
  EXPECT_TRUE(Close(to).ok());
  EXPECT_EQ(Run(CopyJob(from, to), 1).completion.reason.rule, Rule::kUnknownRegion);
}

TEST_F(ProcessWorkerPoolTest, APoolIsMappedByAllWorkersOnItsDeviceAndByItsClient) {
  ProcessWorkerPoolOptions options = Options(3);
  options.devices = {"GPU-a", "GPU-b", "GPU-b"};
  for (size_t i = 0; i < 3; ++i) options.supervisor.workers[i] = {"--device=" + options.devices[i]};
  Start(options);
  ASSERT_TRUE(pool_->WaitReady().ok());
  const uint64_t from = MakeRegion('a');
  const uint64_t id = pool_->NextRegionId();
  Answer<absl::StatusOr<PoolMemory>> allocated;
  pool_->AllocatePool(id, kBytes, pool_->WorkersOn("GPU-b"),
                      [&](absl::StatusOr<PoolMemory> memory) { allocated.Set(std::move(memory)); });
  absl::StatusOr<PoolMemory> memory = allocated.Get();
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->device, "GPU-b");
  EXPECT_EQ(memory->workers, 0b110u);
  files_.push_back(std::move(memory->fd));
  for (const int worker : {1, 2}) {
    ASSERT_EQ(pwrite(files_.back().get(), "?", 1, 0), 1);
    ExpectSuccess(Run(CopyJob(from, id), worker));
    EXPECT_EQ(Bytes(1), Bytes(0));
  }
  EXPECT_EQ(Run(CopyJob(from, id), 0).completion.reason.rule, Rule::kUnknownRegion);
  Replace(1);
  ExpectSuccess(Run(CopyJob(from, id), 1));
}

TEST_F(ProcessWorkerPoolTest, JobsInFlightAreUnavailableWhenTheirWorkerDies) {
  StartReady(1, {"--hang_after_jobs=1"});
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  Answer<JobAnswer> answer;
  ASSERT_TRUE(Submit(CopyJob(from, to), answer).ok());
  WaitUntil([this] { return Worker().jobs_in_flight == 1; });
  EXPECT_FALSE(answer.is_set());
  kill(Worker().pid, SIGKILL);
  EXPECT_TRUE(absl::IsUnavailable(answer.Get().status));
}

// Each process breaks under its first job and gives back the others; with one of them as the cause they would go on.
TEST_F(ProcessWorkerPoolTest, WhatFourBrokenWorkersGaveBackFailsAndQuarantinesNone) {
  StartReady(1, {"--fault_after_jobs=1", "--delay_us=100000", "--merging=false"});
  const uint64_t from = MakeRegion('x');
  constexpr size_t kJobs = 7;
  std::array<Answer<JobAnswer>, kJobs> answers;
  for (Answer<JobAnswer>& answer : answers) ASSERT_TRUE(Submit(CopyJob(from, MakeRegion('y')), answer).ok());
  std::vector<std::string> given_back;
  size_t failed = 0;
  for (Answer<JobAnswer>& answer : answers) {
    const JobAnswer got = answer.Get();
    if (got.completion.code != 0) ++failed;
    if (got.completion.code == 0) given_back.push_back(got.status.ToString());
  }
  EXPECT_EQ(failed, 4u);
  EXPECT_THAT(given_back, ::testing::Each("UNAVAILABLE: the devices of 4 workers broke while it waited"));
  EXPECT_EQ(given_back.size(), 3u);
  WaitUntil([&] { return Worker().restarts == 4 && Worker().state == WorkerState::kReady; });
}

TEST_F(ProcessWorkerPoolTest, AnyWorkerIsTheOneWithLeastToDo) {
  StartReady(2, {"--hang_after_jobs=1"});
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  const uint64_t other = MakeRegion('c');
  Answer<JobAnswer> answers[2];
  const absl::StatusOr<SubmittedJob> first = Submit(CopyJob(from, to), answers[0]);
  const absl::StatusOr<SubmittedJob> second = Submit(CopyJob(from, other), answers[1]);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->worker, second->worker);
  pool_.reset();
  for (Answer<JobAnswer>& answer : answers) EXPECT_TRUE(absl::IsUnavailable(answer.Get().status));
}

TEST_F(ProcessWorkerPoolTest, AWaitingJobIsDroppedOnRequest) {
  StartReady(1, {"--hang_after_jobs=1"});
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  const uint64_t other = MakeRegion('c');
  Answer<JobAnswer> running;
  Answer<JobAnswer> waiting;
  ASSERT_TRUE(Submit(CopyJob(from, to), running).ok());
  const absl::StatusOr<SubmittedJob> submitted = Submit(CopyJob(from, other), waiting);
  ASSERT_TRUE(submitted.ok());
  pool_->Cancel(*submitted);
  EXPECT_EQ(waiting.Get().completion.reason.rule, Rule::kCancelled);
  EXPECT_FALSE(running.is_set());
  pool_.reset();
  EXPECT_TRUE(absl::IsUnavailable(running.Get().status));
}

TEST_F(ProcessWorkerPoolTest, EveryReadyWorkerPrepares) {
  StartReady(3);
  Answer<absl::StatusOr<ControlReply>> prepared;
  pool_->Prepare({}, [&](absl::StatusOr<ControlReply> reply) { prepared.Set(std::move(reply)); });
  const absl::StatusOr<ControlReply> sum = prepared.Get();
  ASSERT_TRUE(sum.ok()) << sum.status();
  EXPECT_EQ(sum->kernels_ready, 3u);
}

TEST_F(ProcessWorkerPoolTest, ItIsWarmOnceEveryWorkerHasPreparedEveryShape) {
  const TemporaryFolder folder;
  const std::string log = folder.path() + "/prepared";
  ProcessWorkerPoolOptions options = Options(2, {"--prepare_log=" + log});
  options.warm_up = {{.op = Op::kDense, .n = 16, .k = 32}, {.op = Op::kKGrouped, .m = 1, .n = 2, .k = 3, .groups = 4}};
  Start(options);
  const absl::Status status = pool_->WaitWarm();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(LinesOf(log),
              UnorderedElementsAre("dense 0 16 32 0", "dense 0 16 32 0", "k_grouped 1 2 3 4", "k_grouped 1 2 3 4"));
}

TEST_F(ProcessWorkerPoolTest, TheSuccessorOfADeadWorkerWarmsUpWhileItWorks) {
  const TemporaryFolder folder;
  const std::string log = folder.path() + "/prepared";
  ProcessWorkerPoolOptions options = Options(1, {"--prepare_log=" + log, "--prepare_delay_us=500000"});
  options.warm_up = {{.op = Op::kDense, .n = 16, .k = 32}, {.op = Op::kDense, .n = 17, .k = 33}};
  Start(options);
  ASSERT_TRUE(pool_->WaitWarm().ok());
  const uint64_t from = MakeRegion('a');
  const uint64_t to = MakeRegion('b');
  Replace();
  ExpectSuccess(Run(CopyJob(from, to)));
  EXPECT_LT(LinesOf(log).size(), 4u) << "it was ready before it was warm";
  WaitUntil([&] { return LinesOf(log).size() == 4; });
}

TEST_F(ProcessWorkerPoolTest, AShapeThatAWorkerRefusesIsNamed) {
  ProcessWorkerPoolOptions options = Options(2, {"--refuse_prepare"});
  options.warm_up = {{.op = Op::kDense, .n = 16, .k = 32}};
  Start(options);
  ASSERT_TRUE(pool_->WaitReady().ok());
  EXPECT_EQ(pool_->WaitWarm(), absl::UnimplementedError("shapes[0]: scripted"));
}

TEST_F(ProcessWorkerPoolTest, WithoutAReadyWorkerNothingIsTaken) {
  ProcessWorkerPoolOptions options = Options(1);
  options.supervisor.restart.max_deaths = 1;
  Start(options);
  ASSERT_TRUE(pool_->WaitReady().ok());
  kill(Worker().pid, SIGKILL);
  WaitUntil([this] { return Worker().state == WorkerState::kQuarantined; });
  EXPECT_EQ(Run(CopyJob(1, 2)).status, absl::UnavailableError("no ready worker"));
  Answer<absl::StatusOr<ControlReply>> prepared;
  pool_->Prepare({}, [&](absl::StatusOr<ControlReply> reply) { prepared.Set(std::move(reply)); });
  EXPECT_TRUE(absl::IsUnavailable(prepared.Get().status()));
  Answer<absl::StatusOr<int>> allocated;
  pool_->AllocateTensor(1, kBytes, kAnyWorker, [&](absl::StatusOr<int> worker) { allocated.Set(std::move(worker)); });
  EXPECT_TRUE(absl::IsUnavailable(allocated.Get().status()));
}

TEST_F(ProcessWorkerPoolTest, NoProcessOutlivesThePool) {
  StartReady(2);
  const std::vector<WorkerSnapshot> workers = pool_->Snapshot();
  pool_.reset();
  for (const WorkerSnapshot& worker : workers) EXPECT_EQ(kill(worker.pid, 0), -1);
}

}  // namespace
}  // namespace gemmd
