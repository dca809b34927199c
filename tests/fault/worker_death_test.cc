// SPDX-License-Identifier: Apache-2.0
// A worker that is killed under load: its requests get UNAVAILABLE, the next request succeeds within two seconds,
// regions and resident tensors are still there, and counters go on.
#include "tests/fault/fault_fixture.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

using testing::Fixture;
using testing::kAllowed;
using testing::MakeProblem;
using testing::StartAll;
using testing::TimeToSuccess;

void KillWorkers(const testing::Daemon& daemon) {
  const std::vector<pid_t> pids = daemon.WorkerPids();
  ASSERT_FALSE(pids.empty());
  for (const pid_t pid : pids) kill(pid, SIGKILL);
}

TEST(WorkerDeathTest, RequestsInItGetUnavailableAndTheNextSucceedsInTwoSeconds) {
  // One after another, and much more work than the time between the first answer and the kill.
  Fixture fixture = StartAll({.flags = {"--merging=false"}});
  if (fixture.daemon->device() != "cpu") GTEST_SKIP() << "a GPU is done before it can be killed; see gpu_fault_test";
  const auto problem =
      MakeProblem(fixture.client.get(), {.op = Op::kDense, .m = 512, .n = 2048, .k = 2048}, Transport::kHost);
  constexpr int kInFlight = 64;
  std::atomic<int> answered{0};
  std::atomic<int> unavailable{0};
  std::atomic<int> wrong{0};
  // Outputs of requests in flight may not overlap: each request names B and A together but its own D comes back inline.
  v1::RunRequest request = problem->request();
  *request.mutable_dense()->mutable_d() = v1::TensorRef();
  request.mutable_dense()->mutable_d()->set_dtype(v1::BF16);
  for (int i = 0; i < kInFlight; ++i) {
    fixture.client->RunAsync(request, {}, [&](absl::StatusOr<v1::RunResponse> response) {
      if (absl::IsUnavailable(response.status())) ++unavailable;
      if (!response.ok() && !absl::IsUnavailable(response.status())) ++wrong;
      ++answered;
    });
  }
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(60), [&] { return answered > 0; }));
  const absl::Time killed = absl::Now();
  KillWorkers(*fixture.daemon);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(60), [&] { return answered == kInFlight; }));
  EXPECT_GT(unavailable, 0);
  EXPECT_EQ(wrong, 0);

  ASSERT_TRUE(problem->ResetResult().ok());
  v1::RunResponse response;
  EXPECT_LE(TimeToSuccess(*fixture.client, problem->request(), killed, &response), kAllowed);
  EXPECT_TRUE(problem->Check(response).ok()) << "the host region must be mapped in the new worker";
}

TEST(WorkerDeathTest, ResidentTensorsKeepTheirContent) {
  Fixture fixture = StartAll();
  const auto problem =
      MakeProblem(fixture.client.get(), {.op = Op::kDense, .m = 9, .n = 512, .k = 512}, Transport::kTensor);
  for (int death = 0; death < 3; ++death) {
    const absl::Time killed = absl::Now();
    KillWorkers(*fixture.daemon);
    v1::RunResponse response;
    EXPECT_LE(TimeToSuccess(*fixture.client, problem->request(), killed, &response), kAllowed);
    EXPECT_TRUE(problem->Check(response).ok()) << problem->Check(response).status();
  }
}

TEST(WorkerDeathTest, CountersDoNotGoBack) {
  Fixture fixture = StartAll();
  const auto problem =
      MakeProblem(fixture.client.get(), {.op = Op::kDense, .m = 4, .n = 128, .k = 128}, Transport::kInline);
  const std::string series = R"(gemmd_requests_total{code="OK",op="dense",transport="inline"})";
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(fixture.client->Run(problem->request()).ok());
  const auto before = fixture.daemon->Metric(series);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(*before, 5);
  KillWorkers(*fixture.daemon);
  v1::RunResponse response;
  TimeToSuccess(*fixture.client, problem->request(), absl::Now(), &response);
  const auto after = fixture.daemon->Metric(series);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(*after, 6);
  const auto restarts = fixture.daemon->Metric(
      absl::StrCat("gemmd_worker_restarts_total{device=\"", fixture.daemon->device(), "\",reason=\"signal\"}"));
  ASSERT_TRUE(restarts.ok()) << restarts.status();
  EXPECT_EQ(*restarts, 1);
}

TEST(WorkerDeathTest, AWorkerThatKeepsDyingIsQuarantined) {
  Fixture fixture = StartAll();
  const auto state = [&](const char* name) {
    const auto value = fixture.daemon->Metric(
        absl::StrCat("gemmd_worker_state{device=\"", fixture.daemon->device(), "\",state=\"", name, "\"}"));
    return value.ok() ? *value : -1;
  };
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(60), [&] {
    for (const pid_t pid : fixture.daemon->WorkerPids()) kill(pid, SIGKILL);
    return state("quarantined") == 1;
  }));
  const auto problem_spec = ProblemSpec{.op = Op::kDense, .m = 1, .n = 16, .k = 16};
  const auto problem = MakeProblem(fixture.client.get(), problem_spec, Transport::kInline);
  const auto response = fixture.client->Run(problem->request());
  EXPECT_TRUE(absl::IsUnavailable(response.status())) << response.status();
}

TEST(WorkerDeathTest, WorkersDieWithTheFrontEnd) {
  Fixture fixture = StartAll();
  const std::vector<pid_t> workers = fixture.daemon->WorkerPids();
  ASSERT_FALSE(workers.empty());
  fixture.daemon->process().Signal(SIGKILL);
  ASSERT_TRUE(fixture.daemon->process().WaitForExit(absl::Seconds(10)).ok());
  EXPECT_TRUE(testing::WaitUntil(absl::Seconds(5), [&] { return !testing::IsRunning(workers[0]); }));
}

}  // namespace
}  // namespace gemmd
