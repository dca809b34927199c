// SPDX-License-Identifier: Apache-2.0
// The supervisor with real processes: shell scripts of one line, for which --control_fd=3 is $0.
#include "server/supervisor.h"

#include "proto/control.h"
#include "proto/job_ring.h"
#include "proto/message_socket.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <gtest/gtest.h>

#include <cerrno>
#include <fcntl.h>
#include <memory>
#include <signal.h>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr uint64_t kMillisecond = 1'000'000;
constexpr uint64_t kHour = 3600 * 1000 * kMillisecond;
// Lives until it is killed, whatever happens to its socket.
constexpr char kSleep[] = "exec sleep 1000";
// Lives until its socket ends, as a worker does.
constexpr char kServe[] = "exec cat <&3";

struct Started {
  pid_t pid = 0;
  uint64_t at_ns = 0;
  std::shared_ptr<UniqueFd> socket;
};

struct Ended {
  RestartReason reason = RestartReason::kExit;
  bool quarantined = false;
  uint64_t at_ns = 0;
};

bool IsThere(pid_t pid) { return kill(pid, 0) == 0 || errno != ESRCH; }

class SupervisorTest : public ::testing::Test {
 protected:
  // No limit is reached unless a test says so.
  static SupervisorOptions Options(const std::vector<std::string>& scripts) {
    SupervisorOptions options;
    options.worker_binary = "/bin/sh";
    for (const std::string& script : scripts) options.workers.push_back({"-c", script});
    options.restart.max_deaths = 1000;
    options.restart.first_backoff_ns = options.restart.max_backoff_ns = kMillisecond;
    options.start_timeout_ns = kHour;
    return options;
  }

  void Start(const SupervisorOptions& options) {
    {
      absl::MutexLock lock(&mutex_);
      started_.resize(options.workers.size());
      ended_.resize(options.workers.size());
    }
    supervisor_ = std::make_unique<Supervisor>(
        options,
        Supervisor::Events{[this](int worker, pid_t pid, UniqueFd socket) {
                             absl::MutexLock lock(&mutex_);
                             started_[static_cast<size_t>(worker)].push_back(
                                 {pid, MonotonicNanos(), std::make_shared<UniqueFd>(std::move(socket))});
                           },
                           [this](int worker, RestartReason reason, bool quarantined) {
                             absl::MutexLock lock(&mutex_);
                             ended_[static_cast<size_t>(worker)].push_back({reason, quarantined, MonotonicNanos()});
                           }});
    supervisor_->Start();
  }

  // Ends the workers as the pool does: their sockets first.
  void Stop() {
    supervisor_->BeginStop();
    {
      absl::MutexLock lock(&mutex_);
      for (auto& of_worker : started_) {
        for (Started& one : of_worker) one.socket.reset();
      }
    }
    supervisor_.reset();
  }

  void TearDown() override {
    if (supervisor_ == nullptr) return;
    supervisor_->BeginStop();
    absl::ReleasableMutexLock lock(&mutex_);
    for (const auto& of_worker : started_) {
      for (const Started& one : of_worker) kill(one.pid, SIGKILL);
    }
    lock.Release();
    supervisor_.reset();
  }

  // The worker's processes so far, once there are `count`.
  std::vector<Started> AwaitStarted(size_t count, size_t worker = 0) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return started_[worker].size() >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience)) << "starts: " << started_[worker].size();
    return started_[worker];
  }

  std::vector<Ended> AwaitEnded(size_t count, size_t worker = 0) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_[worker].size() >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience)) << "ends: " << ended_[worker].size();
    return ended_[worker];
  }

  // What the worker's first process sends.
  std::string Said() {
    const std::vector<Started> started = AwaitStarted(1);
    if (started.empty()) return "";
    const absl::StatusOr<ReceivedMessage> message = ReceiveMessage(started[0].socket->get());
    if (!message.ok()) return message.status().ToString();
    return std::string(reinterpret_cast<const char*>(message->bytes.data()), message->bytes.size());
  }

  absl::Mutex mutex_;
  std::vector<std::vector<Started>> started_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::vector<Ended>> ended_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Supervisor> supervisor_;
};

TEST_F(SupervisorTest, AWorkerGetsItsFlagsAndTheSocketAsDescriptor3) {
  SupervisorOptions options = Options({"echo $0 $1 $2 >&3; exec sleep 1000"});
  options.workers[0].push_back("ignored-as-$0");
  options.workers[0].push_back("--device=cpu");
  Start(options);
  EXPECT_EQ(Said(), "ignored-as-$0 --device=cpu --control_fd=3\n");
}

TEST_F(SupervisorTest, AWorkerInheritsNoOtherDescriptor) {
  const int open_for_all = fcntl(STDERR_FILENO, F_DUPFD, 60);
  ASSERT_GE(open_for_all, 60);
  Start(Options({absl::StrCat("test -e /proc/$$/fd/3 && test ! -e /proc/$$/fd/", open_for_all,
                              " && echo clean >&3; exec sleep 1000")}));
  EXPECT_EQ(Said(), "clean\n");
  close(open_for_all);
}

TEST_F(SupervisorTest, AWorkerHasNoSignalsBlockedAndAGroupOfItsOwn) {
  sigset_t blocked;
  sigset_t before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  Start(Options({"grep SigBlk /proc/self/status >&3; exec sleep 1000"}));
  EXPECT_EQ(Said(), "SigBlk:\t0000000000000000\n");
  const pid_t pid = AwaitStarted(1)[0].pid;
  EXPECT_EQ(getpgid(pid), pid);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_F(SupervisorTest, AWorkerThatDiesIsStartedAgain) {
  Start(Options({kSleep}));
  const pid_t first = AwaitStarted(1)[0].pid;
  kill(first, SIGKILL);
  const std::vector<Started> started = AwaitStarted(2);
  EXPECT_NE(started[1].pid, first);
  EXPECT_FALSE(AwaitEnded(1)[0].quarantined);
  EXPECT_EQ(AwaitEnded(1)[0].reason, RestartReason::kSignal);
  EXPECT_FALSE(IsThere(first)) << "reaped";
  EXPECT_TRUE(IsThere(started[1].pid));
}

TEST_F(SupervisorTest, AfterTheFirstRestartItPauses) {
  SupervisorOptions options = Options({"exit 1"});
  options.restart.first_backoff_ns = 30 * kMillisecond;
  options.restart.max_backoff_ns = 50 * kMillisecond;
  Start(options);
  const std::vector<Started> started = AwaitStarted(4);
  const std::vector<Ended> ended = AwaitEnded(3);
  EXPECT_GE(started[2].at_ns - ended[1].at_ns, 29 * kMillisecond);
  EXPECT_GE(started[3].at_ns - ended[2].at_ns, 49 * kMillisecond);
}

TEST_F(SupervisorTest, AWorkerThatDiesTooOftenStaysDown) {
  SupervisorOptions options = Options({"exit 1", kServe});
  options.restart.max_deaths = 3;
  Start(options);
  const std::vector<Ended> ended = AwaitEnded(3);
  EXPECT_FALSE(ended[1].quarantined);
  EXPECT_TRUE(ended[2].quarantined);
  EXPECT_EQ(AwaitStarted(3).size(), 3u);
  EXPECT_TRUE(IsThere(AwaitStarted(1, 1)[0].pid)) << "the other worker has nothing to do with it";
  Stop();
  EXPECT_EQ(AwaitStarted(3).size(), 3u);
}

TEST_F(SupervisorTest, AWorkerWithoutItsDeviceStaysDownAtOnce) {
  Start(Options({absl::StrCat("exit ", kExitNoDevice)}));
  EXPECT_TRUE(AwaitEnded(1)[0].quarantined);
  Stop();
  EXPECT_EQ(AwaitStarted(1).size(), 1u);
}

TEST_F(SupervisorTest, AProgramThatIsNotThereCountsAsADeath) {
  SupervisorOptions options = Options({kSleep});
  options.worker_binary = "/nonexistent/gemmd-worker";
  options.restart.max_deaths = 2;
  Start(options);
  const std::vector<Ended> ended = AwaitEnded(2);
  EXPECT_FALSE(ended[0].quarantined);
  EXPECT_TRUE(ended[1].quarantined);
  EXPECT_TRUE(AwaitStarted(0).empty());
}

TEST_F(SupervisorTest, AWorkerThatIsNotReadyInTimeIsKilledAndAReadyOneIsNot) {
  SupervisorOptions options = Options({kSleep, kSleep});
  options.start_timeout_ns = 500 * kMillisecond;
  options.exit_grace_ns = 20 * kMillisecond;
  Start(options);
  const pid_t ready = AwaitStarted(1, 0)[0].pid;
  supervisor_->ReportReady(0);
  // The time of the other one begins later, so the first one's is over as well.
  AwaitStarted(1, 1);
  EXPECT_EQ(AwaitEnded(1, 1)[0].reason, RestartReason::kStartTimeout);
  EXPECT_TRUE(IsThere(ready));
  EXPECT_EQ(AwaitStarted(1, 0).size(), 1u);
}

TEST_F(SupervisorTest, AWorkerThatLostItsSocketHasAMomentToExit) {
  SupervisorOptions options = Options({kSleep});
  options.exit_grace_ns = 20 * kMillisecond;
  Start(options);
  const pid_t first = AwaitStarted(1)[0].pid;
  const uint64_t reported_ns = MonotonicNanos();
  supervisor_->ReportLost(0);
  const std::vector<Started> started = AwaitStarted(2);
  EXPECT_NE(started[1].pid, first);
  EXPECT_GE(AwaitEnded(1)[0].at_ns - reported_ns, options.exit_grace_ns);
  EXPECT_EQ(AwaitEnded(1)[0].reason, RestartReason::kHang);
}

TEST_F(SupervisorTest, StoppingWaitsForWorkersThatExit) {
  Start(Options({kServe, kServe}));
  const pid_t first = AwaitStarted(1, 0)[0].pid;
  const pid_t second = AwaitStarted(1, 1)[0].pid;
  Stop();
  EXPECT_FALSE(IsThere(first));
  EXPECT_FALSE(IsThere(second));
}

TEST_F(SupervisorTest, StoppingKillsWorkersThatStay) {
  SupervisorOptions options = Options({kSleep, kSleep});
  options.exit_grace_ns = 20 * kMillisecond;
  Start(options);
  const pid_t first = AwaitStarted(1, 0)[0].pid;
  const pid_t second = AwaitStarted(1, 1)[0].pid;
  Stop();
  EXPECT_FALSE(IsThere(first));
  EXPECT_FALSE(IsThere(second));
}

TEST_F(SupervisorTest, NothingIsStartedOnceItStops) {
  SupervisorOptions options = Options({"exit 1"});
  options.restart.first_backoff_ns = options.restart.max_backoff_ns = kHour;
  Start(options);
  AwaitEnded(2);
  Stop();  // In the middle of the pause.
  EXPECT_EQ(AwaitStarted(2).size(), 2u);
}

}  // namespace
}  // namespace gemmd
