// SPDX-License-Identifier: Apache-2.0
#include "server/network_spin.h"

#include "proto/job_ring.h"
#include "proto/unique_fd.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>
#include <gtest/gtest.h>

#include <algorithm>
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

constexpr uint64_t kMilli = 1'000'000;

double ThreadCpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

class NetworkSpinTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // The times of other cases are over.
    while (MonotonicNanos() <= latest_ns) absl::SleepFor(absl::Milliseconds(1));
    epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event_.get(), &event), 0);
  }

  static void PollFor(uint64_t ns) {
    const uint64_t until_ns = MonotonicNanos() + ns;
    latest_ns = std::max(latest_ns, until_ns);
    network_spin::KeepUntil(until_ns);
  }
  int Wait(int timeout_ms) { return network_spin::EpollWait(epoll_.get(), &ready_, 1, timeout_ms); }
  void Notify() { ASSERT_EQ(eventfd_write(event_.get(), 1), 0); }

  inline static uint64_t latest_ns = 0;
  const uint64_t spun_before_ = network_spin::SpunNanos();
  uint64_t spun() const { return network_spin::SpunNanos() - spun_before_; }

  UniqueFd epoll_{epoll_create1(EPOLL_CLOEXEC)};
  UniqueFd event_{eventfd(0, EFD_CLOEXEC)};
  epoll_event ready_ = {};
};

TEST_F(NetworkSpinTest, WithoutBeingToldItSleeps) {
  const double cpu = ThreadCpuSeconds();
  EXPECT_EQ(Wait(100), 0);
  EXPECT_LT(ThreadCpuSeconds() - cpu, 0.05);
  EXPECT_EQ(spun(), 0u);
}

TEST_F(NetworkSpinTest, AFailureIsThatOfEpollWait) {
  EXPECT_EQ(network_spin::EpollWait(-1, &ready_, 1, 0), -1);
  EXPECT_EQ(errno, EBADF);
  PollFor(10 * kMilli);
  EXPECT_EQ(network_spin::EpollWait(-1, &ready_, 1, -1), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(spun(), 0u);
}

TEST_F(NetworkSpinTest, PollsThenSleepsAndKeepsItsTimeout) {
  PollFor(20 * kMilli);
  const absl::Time begin = absl::Now();
  EXPECT_EQ(Wait(500), 0);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(498));
  EXPECT_GT(spun(), 0u);
  EXPECT_LT(spun(), 400 * kMilli);
}

TEST_F(NetworkSpinTest, AnEventEndsTheWaitWhileItPollsAndWhileItSleeps) {
  for (const bool polls : {false, true}) {
    if (polls) PollFor(500 * kMilli);
    std::thread writer([this, polls] {
      absl::SleepFor(absl::Milliseconds(5));
      while (polls && spun() == 0 && MonotonicNanos() < latest_ns) std::this_thread::yield();
      Notify();
    });
    EXPECT_EQ(Wait(-1), 1);
    EXPECT_EQ(spun() > 0, polls);
    writer.join();
    eventfd_t value = 0;
    ASSERT_EQ(eventfd_read(event_.get(), &value), 0);
  }
}

// So that whoever judges how busy the thread is need not wait for the end of its wait.
TEST_F(NetworkSpinTest, WhatWasPolledCountsAtOnce) {
  PollFor(500 * kMilli);
  std::thread waiter([this] { EXPECT_EQ(Wait(-1), 1); });
  while (spun() == 0 && MonotonicNanos() < latest_ns) std::this_thread::yield();
  EXPECT_GT(spun(), 0u);
  EXPECT_LT(MonotonicNanos(), latest_ns) << "it counted when polling was over";
  Notify();
  waiter.join();
}

TEST_F(NetworkSpinTest, PollingEndsWithTheTimeout) {
  PollFor(500 * kMilli);
  const absl::Time begin = absl::Now();
  EXPECT_EQ(Wait(0), 0);
  EXPECT_EQ(Wait(30), 0);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(29));
  EXPECT_GT(spun(), 0u);
}

#if GEMMD_OWN_EPOLL_WAIT
TEST_F(NetworkSpinTest, GrpcWaitsByIt) {
  PollFor(500 * kMilli);
  grpc::CompletionQueue queue;
  grpc::Alarm alarm;  // A queue without any operation would not wait.
  alarm.Set(&queue, std::chrono::system_clock::now() + std::chrono::milliseconds(50), nullptr);
  void* tag = nullptr;
  bool ok = false;
  EXPECT_TRUE(queue.Next(&tag, &ok));
  EXPECT_GT(spun(), 0u);
  queue.Shutdown();
  EXPECT_FALSE(queue.Next(&tag, &ok));
}

TEST_F(NetworkSpinTest, LibcsNameIsTakenByIt) {
  PollFor(100 * kMilli);
  EXPECT_EQ(epoll_wait(epoll_.get(), &ready_, 1, 5), 0);
  EXPECT_GT(spun(), 0u);
}
#endif

}  // namespace
}  // namespace gemmd
