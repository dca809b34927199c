// SPDX-License-Identifier: Apache-2.0
// A real link against a worker's end that the test plays itself.
#include "server/worker_link.h"

#include "proto/message_socket.h"
#include "proto/shared_memory.h"
#include "server/network_spin.h"

#include "absl/synchronization/notification.h"
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr uint64_t kPatienceNs = 10'000'000'000;

// The worker's end: says nothing by itself.
class WorkerEnd {
 public:
  explicit WorkerEnd(UniqueFd socket) : socket_(std::move(socket)) {}

  ControlRequest ReadRequest() {
    absl::StatusOr<ReceivedMessage> message = ReceiveMessage(socket_.get());
    ControlRequest request;
    if (!message.ok() || message->bytes.size() != sizeof(request)) return request;
    std::memcpy(&request, message->bytes.data(), sizeof(request));
    last_fd_ = std::move(message->fd);
    return request;
  }

  void Reply(const ControlRequest& request, absl::StatusCode code = absl::StatusCode::kOk) {
    ControlReply reply;
    reply.request_id = request.request_id;
    reply.code = static_cast<uint32_t>(code);
    std::strcpy(reply.message, "scripted");
    EXPECT_TRUE(SendStruct(socket_.get(), reply).ok());
  }

  void Hello() {
    ControlReply hello;
    std::strcpy(hello.device, "cpu");
    hello.cores = 3;
    EXPECT_TRUE(SendStruct(socket_.get(), hello).ok());
  }

  void AcceptRing() {
    const ControlRequest request = ReadRequest();
    ASSERT_EQ(request.type, ControlRequestType::kAttachRing);
    absl::StatusOr<JobRing> ring = JobRing::Open(std::move(last_fd_));
    ASSERT_TRUE(ring.ok()) << ring.status();
    ring_ = std::make_unique<JobRing>(*std::move(ring));
    reader_ = std::make_unique<SubmissionReader>(ring_->submissions(), ring_->descriptor_slots(), ring_->slots());
    writer_ = CompletionWriter(ring_->completions(), ring_->completion_slots(), ring_->slots());
    Reply(request);
  }

  JobDescriptor ReadJob() {
    JobDescriptor job;
    const uint64_t deadline = MonotonicNanos() + kPatienceNs;
    while (reader_->Read(job) != RingRead::kItem) {
      reader_->Wait(deadline, {});
      if (MonotonicNanos() > deadline) ADD_FAILURE() << "no job came";
    }
    return job;
  }

  void Complete(uint64_t job_id, Rule rule = Rule::kNone) {
    JobCompletion completion;
    completion.job_id = job_id;
    completion.reason.rule = rule;
    completion.reason.field = JobField::kA;
    completion.code = CodeOf(rule);
    EXPECT_TRUE(writer_.Write(completion));
  }

  JobRing& ring() { return *ring_; }
  const UniqueFd& last_fd() const { return last_fd_; }
  void Die() { socket_.Reset(); }

 private:
  UniqueFd socket_;
  UniqueFd last_fd_;
  std::unique_ptr<JobRing> ring_;
  std::unique_ptr<SubmissionReader> reader_;
  CompletionWriter writer_;
};

// One outcome, waited for.
struct Outcome {
  absl::Notification done;
  int calls = 0;
  absl::Status status;

  WorkerLink::JobCallback ForJob() {
    return [this](const absl::Status& result, const JobCompletion&) { Set(result); };
  }
  WorkerLink::ControlCallback ForControl() {
    return [this](absl::StatusOr<ControlResult> result) { Set(result.status()); };
  }
  void Set(const absl::Status& result) {
    status = result;
    ++calls;
    done.Notify();
  }
  const absl::Status& Wait() {
    done.WaitForNotification();
    return status;
  }
};

class WorkerLinkTest : public ::testing::Test {
 protected:
  void Start(WorkerLinkOptions options = {}) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    worker_ = std::make_unique<WorkerEnd>(UniqueFd(ends[1]));
    WorkerLink::Events events;
    events.on_hello = [this](const WorkerTraits& traits, const UniqueFd&) {
      traits_ = traits;
      hello_.Notify();
    };
    events.on_death = [this] { death_.Notify(); };
    absl::StatusOr<std::unique_ptr<WorkerLink>> link = WorkerLink::Create(UniqueFd(ends[0]), options, events);
    ASSERT_TRUE(link.ok());
    link_ = *std::move(link);
    ASSERT_TRUE(link_->Run().ok());
    worker_->AcceptRing();
  }

  // As the pool does where nobody waits.
  absl::StatusOr<uint64_t> Submit(double work, WorkerLink::JobCallback callback) {
    absl::StatusOr<uint64_t> job_id = link_->Submit({}, work, std::move(callback));
    if (job_id.ok()) link_->LeaveToThread();
    return job_id;
  }

  std::unique_ptr<WorkerEnd> worker_;
  WorkerTraits traits_;
  absl::Notification hello_;
  absl::Notification death_;
  std::unique_ptr<WorkerLink> link_;  // Last: its threads use the others.
};

TEST_F(WorkerLinkTest, TheHelloBringsTheTraits) {
  Start();
  worker_->Hello();
  hello_.WaitForNotification();
  EXPECT_EQ(traits_.device, "cpu");
  EXPECT_EQ(traits_.cores, 3u);
}

TEST_F(WorkerLinkTest, CompletionsFindTheirJobsInAnyOrder) {
  Start();
  Outcome first;
  Outcome second;
  ASSERT_TRUE(Submit(1, first.ForJob()).ok());
  ASSERT_TRUE(Submit(2, second.ForJob()).ok());
  EXPECT_EQ(link_->work_in_flight(), 3);
  const uint64_t first_id = worker_->ReadJob().job_id;
  const uint64_t second_id = worker_->ReadJob().job_id;
  worker_->Complete(second_id);
  EXPECT_TRUE(second.Wait().ok());
  worker_->Complete(first_id, Rule::kMissing);
  EXPECT_EQ(first.Wait().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(link_->jobs_in_flight(), 0u);
  EXPECT_EQ(link_->work_in_flight(), 0);
}

TEST_F(WorkerLinkTest, AJobIdNamesItsWorker) {
  Start({.worker = kMaxWorkers - 1, .generation = 1027});
  Outcome outcome;
  const absl::StatusOr<uint64_t> id = Submit(1, outcome.ForJob());
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(WorkerOf(*id), kMaxWorkers - 1);
  EXPECT_EQ(WorkerOf(0), kAnyWorker);
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(outcome.Wait().ok());
}

TEST_F(WorkerLinkTest, TheOldestJobIsKnownUntilItIsDone) {
  Start();
  EXPECT_EQ(link_->oldest_submission_ns(), 0u);
  const uint64_t before_ns = MonotonicNanos();
  Outcome first;
  Outcome second;
  ASSERT_TRUE(Submit(1, first.ForJob()).ok());
  const uint64_t between_ns = MonotonicNanos();
  ASSERT_TRUE(Submit(1, second.ForJob()).ok());
  EXPECT_GE(link_->oldest_submission_ns(), before_ns);
  EXPECT_LE(link_->oldest_submission_ns(), between_ns);
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(first.Wait().ok());
  EXPECT_GE(link_->oldest_submission_ns(), between_ns);
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(second.Wait().ok());
  EXPECT_EQ(link_->oldest_submission_ns(), 0u);
}

TEST_F(WorkerLinkTest, ACompletionThatNobodyWaitsForIsIgnored) {
  Start();
  Outcome outcome;
  ASSERT_TRUE(Submit(1, outcome.ForJob()).ok());
  const uint64_t id = worker_->ReadJob().job_id;
  worker_->Complete(id + (1 << 12));
  worker_->Complete(0);
  worker_->Complete(id);
  EXPECT_TRUE(outcome.Wait().ok());
}

TEST_F(WorkerLinkTest, CancelReachesTheWorkerForJobsInFlightOnly) {
  Start();
  Outcome outcome;
  const absl::StatusOr<uint64_t> id = Submit(1, outcome.ForJob());
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(worker_->ReadJob().job_id, *id);
  link_->Cancel(*id + (1 << 12));
  link_->Cancel(*id);
  const JobDescriptor cancel = worker_->ReadJob();
  EXPECT_EQ(cancel.op, Op::kCancel);
  EXPECT_EQ(cancel.cancel_job_id, *id);
  worker_->Complete(*id, Rule::kCancelled);
  EXPECT_EQ(outcome.Wait().code(), absl::StatusCode::kCancelled);
}

TEST_F(WorkerLinkTest, TooManyJobsInFlightAreRefusedAtOnce) {
  Start({.max_jobs_in_flight = 1});
  Outcome first;
  Outcome refused;
  ASSERT_TRUE(Submit(1, first.ForJob()).ok());
  EXPECT_EQ(Submit(1, refused.ForJob()).status().code(), absl::StatusCode::kResourceExhausted);
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(first.Wait().ok());
  EXPECT_EQ(refused.calls, 0);
  Outcome next;
  EXPECT_TRUE(Submit(1, next.ForJob()).ok());
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(next.Wait().ok());
}

TEST_F(WorkerLinkTest, AFullRingIsRefusedAtOnce) {
  Start({.ring_slots = 1});
  Outcome first;
  Outcome refused;
  ASSERT_TRUE(Submit(1, first.ForJob()).ok());
  EXPECT_EQ(Submit(1, refused.ForJob()).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(link_->jobs_in_flight(), 1u);
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(first.Wait().ok());
}

TEST_F(WorkerLinkTest, TheDeathOfTheWorkerFailsEverythingInFlightOnce) {
  Start();
  std::vector<std::unique_ptr<Outcome>> outcomes;
  for (int i = 0; i < 10; ++i) {
    outcomes.push_back(std::make_unique<Outcome>());
    ASSERT_TRUE(Submit(1, outcomes.back()->ForJob()).ok());
    outcomes.push_back(std::make_unique<Outcome>());
    ASSERT_TRUE(link_->Control({}, nullptr, outcomes.back()->ForControl()).ok());
  }
  worker_->Die();
  death_.WaitForNotification();
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome->Wait().code(), absl::StatusCode::kUnavailable);
  link_.reset();
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome->calls, 1);
}

TEST_F(WorkerLinkTest, AJobThatWasCompletedBeforeTheDeathSucceeds) {
  Start();
  Outcome outcome;
  ASSERT_TRUE(Submit(1, outcome.ForJob()).ok());
  worker_->Complete(worker_->ReadJob().job_id);
  worker_->Die();
  EXPECT_TRUE(outcome.Wait().ok());
}

TEST_F(WorkerLinkTest, ADeadLinkTakesNothing) {
  Start();
  worker_->Die();
  death_.WaitForNotification();
  Outcome outcome;
  EXPECT_EQ(Submit(1, outcome.ForJob()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(link_->Control({}, nullptr, outcome.ForControl()).code(), absl::StatusCode::kUnavailable);
  link_.reset();
  EXPECT_EQ(outcome.calls, 0);
}

TEST_F(WorkerLinkTest, ControlRequestsCarryADescriptorAndTheirErrorsComeBack) {
  Start();
  absl::StatusOr<UniqueFd> memory = CreateSealedMemory(4096);
  ASSERT_TRUE(memory.ok());
  ControlRequest map;
  map.type = ControlRequestType::kMapRegion;
  map.region_id = 7;
  Outcome outcome;
  ASSERT_TRUE(link_->Control(map, std::make_shared<const UniqueFd>(*std::move(memory)), outcome.ForControl()).ok());
  const ControlRequest seen = worker_->ReadRequest();
  EXPECT_EQ(seen.region_id, 7u);
  EXPECT_TRUE(CheckSealedMemory(worker_->last_fd().get(), 4096).ok());
  worker_->Reply(seen, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(outcome.Wait(), absl::ResourceExhaustedError("scripted"));
}

TEST_F(WorkerLinkTest, MoreControlRequestsThanMayBeSentWaitForReplies) {
  Start({.max_control_in_flight = 2});
  std::vector<std::unique_ptr<Outcome>> outcomes;
  for (int i = 0; i < 500; ++i) {
    outcomes.push_back(std::make_unique<Outcome>());
    ASSERT_TRUE(link_->Control({}, nullptr, outcomes.back()->ForControl()).ok());
  }
  for (int i = 0; i < 500; ++i) worker_->Reply(worker_->ReadRequest());
  for (const auto& outcome : outcomes) EXPECT_TRUE(outcome->Wait().ok());
}

TEST_F(WorkerLinkTest, AnAssistantDeliversTheCompletionItself) {
  Start({.spins = {.assist_ns = kPatienceNs}});
  Outcome outcome;
  ASSERT_TRUE(link_->Submit({}, 1, outcome.ForJob()).ok());
  worker_->Complete(worker_->ReadJob().job_id);
  ASSERT_TRUE(link_->TryAssist());
  link_->Assist();
  EXPECT_EQ(outcome.calls, 1);
}

TEST_F(WorkerLinkTest, TheThreadTakesOverWhatAnAssistantDidNotSee) {
  Start({.spins = {.assist_ns = 1}});
  Outcome outcome;
  ASSERT_TRUE(link_->Submit({}, 1, outcome.ForJob()).ok());
  ASSERT_TRUE(link_->TryAssist());
  link_->Assist();
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(outcome.Wait().ok());
}

TEST_F(WorkerLinkTest, OnlyAnIdleLinkTakesAnAssistant) {
  Start({.spins = {.assist_ns = kPatienceNs}});
  EXPECT_FALSE(link_->TryAssist());
  Outcome first;
  Outcome second;
  ASSERT_TRUE(Submit(1, first.ForJob()).ok());
  EXPECT_FALSE(Submit(1, second.ForJob()).ok() && link_->TryAssist());
  worker_->Complete(worker_->ReadJob().job_id);
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(first.Wait().ok());
  EXPECT_TRUE(second.Wait().ok());
}

// Whether somebody who waits for the network now would poll.
bool NetworkIsPolled() {
  const uint64_t spun_ns = network_spin::SpunNanos();
  const UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  epoll_event event;
  EXPECT_EQ(network_spin::EpollWait(epoll.get(), &event, 1, 1), 0);
  return network_spin::SpunNanos() > spun_ns;
}

void AwaitThatNetworkIsNotPolled() {
  while (NetworkIsPolled()) {
  }
}

constexpr uint64_t kBriefPollNs = 300'000'000;

TEST_F(WorkerLinkTest, TheNetworkIsPolledBesideAJobAndAfterIt) {
  Start({.spins = {.network_ns = kBriefPollNs}});
  AwaitThatNetworkIsNotPolled();
  Outcome outcome;
  ASSERT_TRUE(Submit(1, outcome.ForJob()).ok());
  EXPECT_TRUE(NetworkIsPolled());
  AwaitThatNetworkIsNotPolled();
  worker_->Complete(worker_->ReadJob().job_id);
  EXPECT_TRUE(outcome.Wait().ok());
  EXPECT_TRUE(NetworkIsPolled());
}

TEST_F(WorkerLinkTest, TheDeathOfTheWorkerEndsTheAssistance) {
  Start({.spins = {.assist_ns = kPatienceNs}});
  Outcome outcome;
  ASSERT_TRUE(link_->Submit({}, 1, outcome.ForJob()).ok());
  ASSERT_TRUE(link_->TryAssist());
  worker_->Die();
  link_->Assist();
  EXPECT_EQ(outcome.Wait().code(), absl::StatusCode::kUnavailable);
}

TEST_F(WorkerLinkTest, ABrokenCompletionRingEndsTheLink) {
  Start({});
  Outcome outcome;
  ASSERT_TRUE(Submit(1, outcome.ForJob()).ok());
  const JobRing& ring = worker_->ring();
  ring.completions()->written.store(uint64_t{1} << 40);
  // A reader of our own only to ring the doorbell: the one that reads may sleep.
  CompletionReader(ring.completions(), ring.completion_slots(), ring.slots()).Interrupt();
  EXPECT_EQ(outcome.Wait().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace gemmd
