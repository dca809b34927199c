// SPDX-License-Identifier: Apache-2.0
// The daemon as a program: how it starts, what it says about itself, what it refuses to start with.
#include "client/client.h"
#include "gemmd/v1/admin.grpc.pb.h"
#include "gemmd/v1/gemm.grpc.pb.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

class GemmdTest : public ::testing::Test {
 protected:
  void Start(const testing::DaemonOptions& options = {}) {
    absl::StatusOr<std::unique_ptr<testing::Daemon>> daemon = testing::Daemon::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  std::shared_ptr<grpc::Channel> Channel(const std::string& address) const {
    return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  }

  // Exit status of a daemon that does not start; fails the test if it does.
  int ExitStatus(const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmd", "--metrics_listen="};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    absl::StatusOr<std::unique_ptr<testing::ChildProcess>> process = testing::ChildProcess::Start(arguments);
    if (!process.ok()) return -1;
    const absl::StatusOr<std::string> output = (*process)->ReadAll(absl::Seconds(30));
    EXPECT_TRUE(output.ok() && output->empty()) << *output;
    const absl::StatusOr<int> status = (*process)->WaitForExit(absl::Seconds(30));
    return status.ok() && WIFEXITED(*status) ? WEXITSTATUS(*status) : -1;
  }

  static mode_t Mode(const std::string& path) {
    struct stat found {};
    return stat(path.c_str(), &found) == 0 ? found.st_mode & 0777 : 0;
  }

  std::unique_ptr<testing::Daemon> daemon_;
};

TEST_F(GemmdTest, AnInlineProductOfOnesIsK) {
  Start();
  v1::RunRequest request;
  v1::Dense& dense = *request.mutable_dense();
  dense.set_scaling(v1::SCALING_NONE);
  for (v1::TensorRef* operand : {dense.mutable_a(), dense.mutable_b()}) {
    operand->set_dtype(v1::BF16);
    operand->add_shape(8);
    operand->add_shape(64);
    for (int i = 0; i < 8 * 64; ++i) operand->mutable_inline_()->append("\x80\x3f", 2);  // 1.0
  }
  dense.mutable_d()->set_dtype(v1::F32);
  grpc::ClientContext context;
  v1::RunResponse response;
  const grpc::Status status = v1::Gemm::NewStub(Channel(daemon_->address()))->Run(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.d().size(), 8u * 8 * 4);
  EXPECT_EQ(response.d().substr(0, 4), std::string("\x00\x00\x80\x42", 4));  // 64.0
}

TEST_F(GemmdTest, TheSocketsAreForOwnerAndGroupOnly) {
  Start();
  EXPECT_EQ(Mode(daemon_->socket_path()), 0660u);
  EXPECT_EQ(Mode(daemon_->socket_path() + ".broker"), 0660u);
  EXPECT_EQ(Mode(daemon_->socket_path().substr(0, daemon_->socket_path().rfind('/'))), 0750u);
}

TEST_F(GemmdTest, InfoNamesTheWorkers) {
  Start({.flags = {"--workers=cpu,cpu"}, .tcp = false});
  grpc::ClientContext context;
  v1::ServerInfo info;
  ASSERT_TRUE(v1::Admin::NewStub(Channel(daemon_->address()))->GetInfo(&context, {}, &info).ok());
  ASSERT_EQ(info.workers_size(), 2);
  for (const v1::WorkerInfo& worker : info.workers()) {
    EXPECT_EQ(worker.device(), "cpu");
    EXPECT_EQ(worker.state(), v1::WorkerInfo::READY);
    EXPECT_EQ(kill(worker.pid(), 0), 0);
  }
  EXPECT_EQ(info.broker_path(), daemon_->socket_path() + ".broker");
}

TEST_F(GemmdTest, WorkersPollForAsLongAsTheFlagSays) {
  Start({.flags = {"--spin_us=30"}});
  const std::vector<pid_t> workers = daemon_->WorkerPids();
  ASSERT_EQ(workers.size(), 1u);
  std::ifstream command(absl::StrCat("/proc/", workers[0], "/cmdline"));
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(command, argument, '\0');) arguments.push_back(argument);
  EXPECT_EQ(std::count(arguments.begin(), arguments.end(), "--spin_us=30"), 1);
}

TEST_F(GemmdTest, AdministrationIsNotTakenOverTcp) {
  Start({.flags = {}, .tcp = true});
  const auto admin = v1::Admin::NewStub(Channel(daemon_->tcp_address()));
  grpc::ClientContext drain;
  v1::DrainResponse response;
  EXPECT_EQ(admin->Drain(&drain, {}, &response).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  grpc::ClientContext info;
  v1::ServerInfo server;
  EXPECT_TRUE(admin->GetInfo(&info, {}, &server).ok());
  EXPECT_EQ(server.broker_path(), "");
}

TEST_F(GemmdTest, ACallAfterAnIdleSecondIsAnsweredAtOnce) {
  Start();
  const auto admin = v1::Admin::NewStub(Channel(daemon_->address()));
  const auto call = [&admin] {
    const absl::Time start = absl::Now();
    grpc::ClientContext context;
    v1::ServerInfo info;
    EXPECT_TRUE(admin->GetInfo(&context, {}, &info).ok());
    return absl::Now() - start;
  };
  call();
  absl::Duration fastest = absl::InfiniteDuration();
  for (int i = 0; i < 4; ++i) {
    absl::SleepFor(absl::Milliseconds(1020));  // gRPC's threads would nap from 1 s to 1.1 s after the last call.
    fastest = std::min(fastest, call());
  }
  EXPECT_LT(fastest, absl::Milliseconds(60));
}

TEST_F(GemmdTest, ADrainByRpcEndsTheDaemonWithStatusZero) {
  Start();
  grpc::ClientContext context;
  v1::DrainResponse response;
  ASSERT_TRUE(v1::Admin::NewStub(Channel(daemon_->address()))->Drain(&context, {}, &response).ok());
  const absl::StatusOr<int> status = daemon_->process().WaitForExit(absl::Seconds(30));
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
}

TEST_F(GemmdTest, ASecondSignalEndsADrainAtOnce) {
  Start({.flags = {"--drain_delay=10m"}, .tcp = false});
  daemon_->process().Signal(SIGTERM);
  ASSERT_TRUE(testing::WaitUntil(absl::Seconds(10), [this] {
    const absl::StatusOr<double> ready = daemon_->Metric("gemmd_ready");
    return ready.ok() && *ready == 0;
  }));
  daemon_->process().Signal(SIGTERM);
  EXPECT_TRUE(daemon_->process().WaitForExit(absl::Seconds(10)).ok());
}

TEST_F(GemmdTest, ASecondDaemonOnTheSameSocketDoesNotStart) {
  Start();
  EXPECT_EQ(ExitStatus({"--listen=" + daemon_->address(), "--workers=cpu"}), 1);
  grpc::ClientContext context;
  v1::ServerInfo info;
  EXPECT_TRUE(v1::Admin::NewStub(Channel(daemon_->address()))->GetInfo(&context, {}, &info).ok());
}

TEST_F(GemmdTest, ASocketLeftByAKilledDaemonIsReplaced) {
  Start();
  daemon_->process().Signal(SIGKILL);
  ASSERT_TRUE(daemon_->process().WaitForExit(absl::Seconds(10)).ok());
  absl::StatusOr<std::unique_ptr<testing::ChildProcess>> next = testing::ChildProcess::Start(
      {testing::BinaryDirectory() + "/gemmd", "--listen=" + daemon_->address(), "--metrics_listen=", "--workers=cpu"});
  ASSERT_TRUE(next.ok()) << next.status();
  const absl::StatusOr<std::string> line = (*next)->ReadLine(absl::Seconds(30));
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(*line, "gemmd ready: listen=" + daemon_->address() + " metrics= workers=cpu");
}

TEST_F(GemmdTest, OnlyListedUsersOpenSessionsAtTheBroker) {
  Start({.flags = {absl::StrCat("--allow_uids=", geteuid() + 1, ",", geteuid())}, .tcp = false});
  EXPECT_TRUE(Client::Connect(daemon_->address()).ok());
  Start({.flags = {absl::StrCat("--allow_uids=", geteuid() + 1)}, .tcp = false});
  EXPECT_EQ(Client::Connect(daemon_->address()).status(),
            absl::PermissionDeniedError("broker: this user is not in --allow_uids"));
  ConnectOptions without_session;
  without_session.open_session = false;
  const auto client = Client::Connect(daemon_->address(), without_session);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE((*client)->GetInfo().ok());
}

TEST_F(GemmdTest, WhatCannotBeServedIsRefusedAtTheStart) {
  const testing::TemporaryDirectory directory;
  const std::string listen = "--listen=unix:" + directory.path() + "/g.sock";
  EXPECT_EQ(ExitStatus({listen, "--workers=tpu"}), 1);
  EXPECT_EQ(ExitStatus({listen + ",0.0.0.0:0", "--workers=cpu"}), 1);
  EXPECT_EQ(ExitStatus({listen, "--workers=cpu", "--allow_uids=root"}), 1);
  EXPECT_EQ(ExitStatus({"--listen=127.0.0.1:0", "--workers=cpu"}), 1);
  EXPECT_EQ(ExitStatus({listen, "--workers=cpu", "--tls_cert=/nonexistent"}), 1);
}

}  // namespace
}  // namespace gemmd
