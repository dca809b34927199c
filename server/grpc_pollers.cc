// SPDX-License-Identifier: Apache-2.0
#include "server/grpc_pollers.h"

#include "server/network_spin.h"

#include "absl/time/clock.h"
#include <grpc/support/cpu.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>
#include <unistd.h>

namespace gemmd {
namespace {

// What gRPC 1.51 calls them, and how many it starts (CallbackAlternativeCQ in completion_queue_cc.cc).
constexpr char kThreadName[] = "nexting_thread";
size_t ExpectedThreads() { return std::clamp<size_t>(gpr_cpu_num_cores() / 2, 2, 16); }

// A thread that has waited a second for nothing sleeps for a tenth of one before it waits again (nexting_thread in
// completion_queue_cc.cc, "an idle phase"). With one thread nobody waits meanwhile, so it is never left that long
// alone.
constexpr absl::Duration kNudge = absl::Milliseconds(400);

// Threads name themselves when they begin to run.
constexpr absl::Duration kStartTime = absl::Seconds(1);

std::vector<pid_t> ThreadsNow() {
  std::vector<pid_t> threads;
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    if (std::getline(file, name) && name == kThreadName) threads.push_back(std::stoi(task.path().filename().string()));
  }
  return threads;
}

// Empty if there are not as many as expected: then this is another gRPC, which is left alone.
std::vector<pid_t> FindThreads() {
  const absl::Time deadline = absl::Now() + kStartTime;
  std::vector<pid_t> threads = ThreadsNow();
  while (threads.size() != ExpectedThreads()) {
    if (absl::Now() > deadline) return {};
    absl::SleepFor(absl::Milliseconds(1));
    threads = ThreadsNow();
  }
  return threads;
}

// The CPU clock of a thread of this process, as pthread_getcpuclockid makes it of a thread that one has a handle of
// (linux/posix-timers.h: the inverted id, and the flags for a thread and for scheduler time).
clockid_t CpuClock(pid_t thread) {
  constexpr unsigned kThreadAndScheduler = 4 | 2;
  return static_cast<clockid_t>((~static_cast<unsigned>(thread) << 3) | kThreadAndScheduler);
}

}  // namespace

// A call that is over before it began; its completion runs on one of the threads. It holds the channel, so it is freed
// on ours: gRPC's threads end with the last channel or server, and one that frees that waits for itself to end.
struct GrpcPollers::CancelledCall {
  grpc::ClientContext context;
  // gRPC takes no message without a slice.
  grpc::Slice nothing;
  grpc::ByteBuffer request{&nothing, 1};
  grpc::ByteBuffer response;
};

GrpcPollers::GrpcPollers(PollerPolicy policy, const cpu_set_t& cpus)
    : policy_(policy),
      threads_(FindThreads()),
      // Never connected.
      stub_(grpc::CreateChannel("unix:/nonexistent", grpc::InsecureChannelCredentials())),
      serving_(total()) {
  if (total() < 2) return;
  // Fails if a core was taken from this process meanwhile; then they run where they can.
  for (const pid_t thread : threads_) (void)sched_setaffinity(thread, sizeof(cpus), &cpus);
  Park();
  governor_ = std::thread(&GrpcPollers::Govern, this);
}

GrpcPollers::~GrpcPollers() {
  if (!governor_.joinable()) return;
  {
    const absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  governor_.join();
  Release();
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](bool* nudging) { return !*nudging; }, &nudging_));
}

void GrpcPollers::Park() {
  {
    const absl::MutexLock lock(&mutex_);
    parking_ = true;
  }
  for (int i = 1; i < total(); ++i) {
    calls_.push_back(std::make_unique<CancelledCall>());
    CancelledCall& call = *calls_.back();
    call.context.TryCancel();
    stub_.UnaryCall(&call.context, "/", {}, &call.request, &call.response, [this](const grpc::Status&) {
      const absl::MutexLock lock(&mutex_);
      ++parked_;
      mutex_.Await(absl::Condition(
          +[](bool* parking) { return !*parking; }, &parking_));
      --parked_;
    });
  }
  const absl::MutexLock lock(&mutex_);
  const auto all_parked = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return parked_ == total() - 1; };
  mutex_.Await(absl::Condition(&all_parked));
  serving_.store(1, std::memory_order_relaxed);
}

void GrpcPollers::Release() {
  {
    const absl::MutexLock lock(&mutex_);
    parking_ = false;
    mutex_.Await(absl::Condition(
        +[](int* parked) { return *parked == 0; }, &parked_));
  }
  calls_.clear();
  serving_.store(total(), std::memory_order_relaxed);
}

void GrpcPollers::Nudge() {
  {
    const absl::MutexLock lock(&mutex_);
    if (nudging_) return;  // The thread has been busy since the last one.
    nudging_ = true;
  }
  nudge_ = std::make_unique<CancelledCall>();
  nudge_->context.TryCancel();
  stub_.UnaryCall(&nudge_->context, "/", {}, &nudge_->request, &nudge_->response, [this](const grpc::Status&) {
    const absl::MutexLock lock(&mutex_);
    nudging_ = false;
  });
}

// What the thread that waits polled in vain is not load. (Measured by another clock, it may come out a little too
// long.)
double GrpcPollers::CpuSeconds() const {
  double seconds = -static_cast<double>(network_spin::SpunNanos()) * 1e-9;
  for (const pid_t thread : threads_) {
    timespec used{};
    if (clock_gettime(CpuClock(thread), &used) == 0) {
      seconds += static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) * 1e-9;
    }
  }
  return seconds;
}

bool GrpcPollers::Ended(absl::Duration wait) {
  const absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&ending_), wait);
}

void GrpcPollers::Govern() {
  double used_before = CpuSeconds();
  absl::Time before = absl::Now();
  absl::Time busy = before;
  absl::Time nudged = before;
  while (!Ended(policy_.period)) {
    const double used = CpuSeconds();
    const absl::Time now = absl::Now();
    const double cores = std::max(used - used_before, 0.0) / absl::ToDoubleSeconds(now - before);
    used_before = used;
    before = now;
    if (cores >= policy_.park_below) busy = now;
    if (now - nudged >= kNudge) {
      Nudge();
      nudged = now;
    }
    if (serving() == 1 && cores > policy_.release_above) {
      Release();
    } else if (serving() > 1 && now - busy >= policy_.quiet_time) {
      Park();
    }
  }
}

}  // namespace gemmd
