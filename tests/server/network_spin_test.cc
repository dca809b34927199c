// SPDX-License-Identifier: Apache-2.0
#include "server/network_spin.h"

#include "proto/job_ring.h"
#include "proto/unique_fd.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>

namespace gemmd {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

double ThreadCpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Times only move forward: the cases stand in the order of what they set.
class NetworkSpinTest : public ::testing::Test {
 protected:
  void SetUp() override {
    epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event_.get(), &event), 0);
  }

  int Wait(int timeout_ms) { return network_spin::EpollWait(epoll_.get(), &ready_, 1, timeout_ms); }
  void Notify() { ASSERT_EQ(eventfd_write(event_.get(), 1), 0); }

  UniqueFd epoll_{epoll_create1(EPOLL_CLOEXEC)};
  UniqueFd event_{eventfd(0, EFD_CLOEXEC)};
  epoll_event ready_ = {};
};

TEST_F(NetworkSpinTest, WithoutBeingToldItSleeps) {
  const double cpu = ThreadCpuSeconds();
  EXPECT_EQ(Wait(100), 0);
  EXPECT_LT(ThreadCpuSeconds() - cpu, 0.05);
  EXPECT_EQ(network_spin::SpunNanos(), 0u);
}

TEST_F(NetworkSpinTest, AFailureIsThatOfEpollWait) {
  EXPECT_EQ(network_spin::EpollWait(-1, &ready_, 1, 0), -1);
  EXPECT_EQ(errno, EBADF);
  network_spin::KeepUntil(MonotonicNanos() + kSecond / 100);
  EXPECT_EQ(network_spin::EpollWait(-1, &ready_, 1, -1), -1);
  EXPECT_EQ(errno, EBADF);
}

TEST_F(NetworkSpinTest, PollsThenSleepsAndKeepsItsTimeout) {
  const uint64_t spun = network_spin::SpunNanos();
  network_spin::KeepUntil(MonotonicNanos() + kSecond / 50);
  const absl::Time begin = absl::Now();
  EXPECT_EQ(Wait(500), 0);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(498));
  const uint64_t polled = network_spin::SpunNanos() - spun;
  EXPECT_GT(polled, kSecond / 100);
  EXPECT_LT(polled, kSecond * 4 / 10);
}

TEST_F(NetworkSpinTest, AnEventEndsTheWaitWhileItPollsAndWhileItSleeps) {
  for (const uint64_t polls_for : {uint64_t{0}, 20 * kSecond}) {
    if (polls_for > 0) network_spin::KeepUntil(MonotonicNanos() + polls_for);
    std::thread writer([this] {
      absl::SleepFor(absl::Milliseconds(5));
      Notify();
    });
    EXPECT_EQ(Wait(-1), 1);
    writer.join();
    eventfd_t value = 0;
    ASSERT_EQ(eventfd_read(event_.get(), &value), 0);
  }
}

// From here on it polls for 20 s.
TEST_F(NetworkSpinTest, PollingEndsWithTheTimeout) {
  const absl::Time begin = absl::Now();
  EXPECT_EQ(Wait(0), 0);
  EXPECT_EQ(Wait(30), 0);
  const absl::Duration took = absl::Now() - begin;
  EXPECT_GE(took, absl::Milliseconds(29));
  EXPECT_LT(took, absl::Seconds(10));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(NetworkSpinTest, GrpcWaitsByIt) {
  const uint64_t spun = network_spin::SpunNanos();
  grpc::CompletionQueue queue;
  grpc::Alarm alarm;  // A queue without any operation would not wait.
  alarm.Set(&queue, std::chrono::system_clock::now() + std::chrono::milliseconds(50), nullptr);
  void* tag = nullptr;
  bool ok = false;
  EXPECT_TRUE(queue.Next(&tag, &ok));
  EXPECT_GT(network_spin::SpunNanos(), spun);
  queue.Shutdown();
  EXPECT_FALSE(queue.Next(&tag, &ok));
}

TEST_F(NetworkSpinTest, LibcsNameIsTakenByIt) {
  const uint64_t spun = network_spin::SpunNanos();
  EXPECT_EQ(epoll_wait(epoll_.get(), &ready_, 1, 5), 0);
  EXPECT_GT(network_spin::SpunNanos(), spun);
}
#endif

}  // namespace
}  // namespace gemmd
