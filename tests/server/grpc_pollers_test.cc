// SPDX-License-Identifier: Apache-2.0
// A server whose only method tells which thread answered it, and keeps that thread busy for as long as the request
// says.
#include "server/grpc_pollers.h"

#include "gemmd/v1/tensors.grpc.pb.h"
#include "proto/job_ring.h"
#include "server/cpu_placement.h"
#include "server/network_spin.h"

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

class ThreadService : public v1::Tensors::CallbackService {
 public:
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context, const v1::ListTensorsRequest*,
                                 v1::ListTensorsResponse*) override {
    {
      const absl::MutexLock lock(&mutex_);
      threads_.insert(std::this_thread::get_id());
    }
    const absl::Time end = absl::Now() + absl::Microseconds(busy_us.load());
    while (absl::Now() < end) {
    }
    auto* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  size_t TakeThreads() {
    const absl::MutexLock lock(&mutex_);
    const size_t count = threads_.size();
    threads_.clear();
    return count;
  }

  std::atomic<int> busy_us = 0;

 private:
  absl::Mutex mutex_;
  std::set<std::thread::id> threads_;
};

class GrpcPollersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void TearDown() override { server_->Shutdown(); }

  // Calls by `clients` threads, each with a connection of its own, until `done`.
  void CallUntil(int clients, const std::function<bool()>& done) {
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(clients));
    for (int i = 0; i < clients; ++i) {
      threads.emplace_back([this, &done, i] {
        grpc::ChannelArguments arguments;
        arguments.SetInt("client", i);
        const auto stub = v1::Tensors::NewStub(grpc::CreateCustomChannel(
            "127.0.0.1:" + std::to_string(port_), grpc::InsecureChannelCredentials(), arguments));
        while (!done()) {
          grpc::ClientContext context;
          v1::ListTensorsResponse response;
          const grpc::Status status = stub->List(&context, {}, &response);
          EXPECT_TRUE(status.ok()) << status.error_message();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  void CallFor(int clients, absl::Duration time) {
    const absl::Time end = absl::Now() + time;
    CallUntil(clients, [end] { return absl::Now() > end; });
  }

  ThreadService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(GrpcPollersTest, OneThreadServesWhileThereIsLittleToDo) {
  const GrpcPollers pollers({.release_above = 1e9}, AllowedCpus());
  ASSERT_GE(pollers.total(), 2) << "gRPC starts at least two";
  EXPECT_EQ(pollers.serving(), 1);
  CallFor(4, absl::Milliseconds(300));
  EXPECT_EQ(service_.TakeThreads(), 1);
}

TEST_F(GrpcPollersTest, AllThreadsServeUnderLoadAndOneAgainAfterIt) {
  const GrpcPollers pollers({.period = absl::Milliseconds(10),
                             .release_above = 0.3,
                             .park_below = 0.2,
                             .quiet_time = absl::Milliseconds(100)},
                            AllowedCpus());
  service_.busy_us = 2000;
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  // Once is enough: where others have the cores, they may be parked again before all callers have stopped.
  std::atomic<bool> all_served{false};
  CallUntil(4, [&] {
    if (pollers.serving() == pollers.total()) all_served = true;
    return all_served || absl::Now() > deadline;
  });
  ASSERT_TRUE(all_served);
  service_.TakeThreads();
  const auto seen = std::make_shared<std::atomic<size_t>>(0);
  CallUntil(4, [&] {
    *seen += service_.TakeThreads();
    return *seen >= 2 || absl::Now() > deadline;
  });
  while (pollers.serving() != 1 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(pollers.serving(), 1);
}

#if GEMMD_OWN_EPOLL_WAIT
TEST_F(GrpcPollersTest, PollingForTheNetworkIsNoLoad) {
  const GrpcPollers pollers({.release_above = 0.6}, AllowedCpus());
  const uint64_t spun_ns = network_spin::SpunNanos();
  const absl::Time end = absl::Now() + absl::Milliseconds(500);
  network_spin::KeepUntil(MonotonicNanos() + 500'000'000);
  CallFor(1, absl::Milliseconds(5));  // Ends the sleep that the thread is in.
  while (absl::Now() < end) {
    ASSERT_EQ(pollers.serving(), 1);
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_GT(network_spin::SpunNanos(), spun_ns + 100'000'000);
}
#endif

TEST_F(GrpcPollersTest, TheEndReleasesThem) {
  for (int i = 0; i < 50; ++i) const GrpcPollers pollers({}, AllowedCpus());
  CallFor(2, absl::Milliseconds(20));
  EXPECT_GE(service_.TakeThreads(), 1);
}

TEST(GrpcPollersWithoutServerTest, DoesNothing) {
  const GrpcPollers pollers({}, AllowedCpus());
  EXPECT_EQ(pollers.total(), 0);
  EXPECT_EQ(pollers.serving(), 0);
}

}  // namespace
}  // namespace gemmd
