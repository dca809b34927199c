// SPDX-License-Identifier: Apache-2.0
// Workers that crash, hang, or report a broken device: what was running fails with UNAVAILABLE, what was waiting is
// done by the successor, and that serves within two seconds.
#include "tests/fault/fault_fixture.h"

#include "absl/strings/str_cat.h"
#include <gtest/gtest.h>

#include <string>

namespace gemmd {
namespace {

using testing::Answers;
using testing::FaultyWorker;
using testing::Fixture;
using testing::kAllowed;
using testing::MakeProblem;
using testing::RunMany;
using testing::StartAll;
using testing::TimeToSuccess;

double RestartsBy(const testing::Daemon& daemon, const std::string& reason) {
  return daemon
      .Metric(absl::StrCat("gemmd_worker_restarts_total{device=\"", daemon.device(), "\",reason=\"", reason, "\"}"))
      .value_or(-1);
}

// By every way in which these tests end a worker; which of them it is depends on the device.
double Restarts(const testing::Daemon& daemon) {
  return RestartsBy(daemon, "signal") + RestartsBy(daemon, "exit") + RestartsBy(daemon, "device_fault") +
         RestartsBy(daemon, "hang");
}

TEST(WorkerFaultTest, AWorkerThatCrashesIsReplaced) {
  const FaultyWorker faulty;
  Fixture fixture = StartAll({.flags = {faulty.Flag()}});
  const auto problem =
      MakeProblem(fixture.client.get(), {.op = Op::kDense, .m = 9, .n = 512, .k = 512}, Transport::kTensor);
  faulty.Inject("illegal_access");
  const absl::Time start = absl::Now();
  EXPECT_TRUE(absl::IsUnavailable(fixture.client->Run(problem->request()).status()));
  v1::RunResponse response;
  EXPECT_LE(TimeToSuccess(*fixture.client, problem->request(), start, &response), kAllowed);
  EXPECT_TRUE(problem->Check(response).ok()) << problem->Check(response).status();
  EXPECT_EQ(Restarts(*fixture.daemon), 1);
}

TEST(WorkerFaultTest, AWorkerThatHangsIsKilledAndReplaced) {
  const absl::Duration hang_timeout = absl::Milliseconds(500);
  const FaultyWorker faulty;
  Fixture fixture =
      StartAll({.flags = {faulty.Flag(), absl::StrCat("--worker_hang_timeout=", absl::FormatDuration(hang_timeout))}});
  const auto problem =
      MakeProblem(fixture.client.get(), {.op = Op::kDense, .m = 9, .n = 512, .k = 512}, Transport::kTensor);
  v1::RunResponse response;
  // A worker that has nothing to do does not hang.
  absl::SleepFor(2 * hang_timeout);
  const auto healthy = fixture.client->Run(problem->request());
  EXPECT_TRUE(healthy.ok()) << healthy.status();
  EXPECT_EQ(Restarts(*fixture.daemon), 0);

  faulty.Inject("hang");
  const absl::Time start = absl::Now();
  EXPECT_TRUE(absl::IsUnavailable(fixture.client->Run(problem->request()).status()));
  const absl::Time failed = absl::Now();
  EXPECT_GE(failed - start, hang_timeout);
  EXPECT_LE(failed - start, hang_timeout + kAllowed);
  EXPECT_LE(TimeToSuccess(*fixture.client, problem->request(), failed, &response), kAllowed);
  EXPECT_TRUE(problem->Check(response).ok()) << problem->Check(response).status();
  EXPECT_EQ(RestartsBy(*fixture.daemon, "hang"), 1);
}

TEST(WorkerFaultTest, WhatABrokenDeviceNeverBeganIsDoneByTheSuccessor) {
  const testing::TemporaryDirectory directory;
  // Each process of the worker completes nine jobs, fails the tenth, and ends.
  const std::string worker = testing::WorkerWithFlags(directory, "gemmd-worker-fake",
                                                      {"--fault_after_jobs=10", "--delay_us=20000", "--merging=false"});
  Fixture fixture = StartAll({.flags = {"--worker_binary=" + worker}});
  const auto problem =
      MakeProblem(fixture.client.get(), {.op = Op::kDense, .m = 1, .n = 16, .k = 16}, Transport::kInline);
  const Answers answers = RunMany(*fixture.client, problem->request(), 18);
  EXPECT_EQ(answers.ok, 17);
  EXPECT_EQ(answers.unavailable + answers.other, 1);
  EXPECT_EQ(Restarts(*fixture.daemon), 1);
}

}  // namespace
}  // namespace gemmd
