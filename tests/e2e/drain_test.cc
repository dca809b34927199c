// SPDX-License-Identifier: Apache-2.0
// SIGTERM loses nothing: what was accepted is answered, what comes later is refused, and the daemon exits with status
// 0.
#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <memory>
#include <sys/wait.h>

namespace gemmd {
namespace {

struct Load {
  std::unique_ptr<testing::Daemon> daemon;
  std::unique_ptr<Client> client;
  std::unique_ptr<Problem> problem;
  v1::RunRequest request;
  std::atomic<int> succeeded{0};
  std::atomic<int> answered{0};
};

void Start(Load& load, const testing::DaemonOptions& options) {
  auto daemon = testing::Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  load.daemon = *std::move(daemon);
  auto client = Client::Connect(load.daemon->address());
  ASSERT_TRUE(client.ok()) << client.status();
  load.client = *std::move(client);
  const ProblemSpec spec{.op = Op::kDense, .m = 128, .n = 1024, .k = 1024};
  const auto weights = Weights::Create(load.client.get(), spec, Transport::kHost, 1);
  ASSERT_TRUE(weights.ok()) << weights.status();
  auto problem = Problem::Create(load.client.get(), spec, Transport::kHost, *weights, 2);
  ASSERT_TRUE(problem.ok()) << problem.status();
  load.problem = *std::move(problem);
  load.request = load.problem->request();
  *load.request.mutable_dense()->mutable_d() = v1::TensorRef();
  load.request.mutable_dense()->mutable_d()->set_dtype(v1::BF16);
}

void Send(Load& load, int count) {
  for (int i = 0; i < count; ++i) {
    load.client->RunAsync(load.request, {}, [&load](const absl::StatusOr<v1::RunResponse>& response) {
      if (response.ok()) ++load.succeeded;
      ++load.answered;
    });
  }
}

void ExpectExitStatusZero(testing::ChildProcess& process) {
  const auto status = process.WaitForExit(absl::Seconds(60));
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << "wait status " << *status;
}

TEST(DrainTest, AcceptedRequestsAreAnsweredBeforeTheExit) {
  Load load;
  Start(load, {});
  Send(load, 24);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(60), [&] { return load.answered > 0; }));
  load.daemon->process().Signal(SIGTERM);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(60), [&] { return load.answered == 24; }));
  EXPECT_EQ(load.succeeded, 24);
  ExpectExitStatusZero(load.daemon->process());
}

TEST(DrainTest, WorkGoesOnDuringTheDelay) {
  Load load;
  Start(load, {.flags = {"--drain_delay=3s"}});
  load.daemon->process().Signal(SIGTERM);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(10), [&] {
    const auto info = load.client->GetInfo();
    return info.ok() && info->draining();
  }));
  Send(load, 4);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(60), [&] { return load.answered == 4; }));
  EXPECT_EQ(load.succeeded, 4);
  ExpectExitStatusZero(load.daemon->process());
}

TEST(DrainTest, AfterTheDrainNewRequestsAreUnavailable) {
  Load load;
  Start(load, {});
  ASSERT_TRUE(load.client->Drain().ok());
  ExpectExitStatusZero(load.daemon->process());
  const auto response = load.client->Run(load.request, {.timeout = absl::Seconds(5)});
  EXPECT_TRUE(absl::IsUnavailable(response.status())) << response.status();
}

TEST(DrainTest, WorkersAreGoneWithTheDaemon) {
  Load load;
  Start(load, {});
  const std::vector<pid_t> workers = load.daemon->WorkerPids();
  ASSERT_FALSE(workers.empty());
  load.daemon->process().Signal(SIGTERM);
  ExpectExitStatusZero(load.daemon->process());
  EXPECT_TRUE(testing::WaitUntil(absl::Seconds(5), [&] { return !testing::IsRunning(workers[0]); }));
}

}  // namespace
}  // namespace gemmd
