// SPDX-License-Identifier: Apache-2.0
// Bearer tokens: with --token_file every call on HOST:PORT but a health check needs one.
#include "client/client.h"
#include "client/health.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <sys/stat.h>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

// The status of a call without credentials and without a message.
grpc::StatusCode BareCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
  const grpc::ByteBuffer request(nullptr, 0);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  grpc::Status status;
  absl::Notification done;
  grpc::GenericStub(channel).UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                                       [&](grpc::Status result) {
                                         status = std::move(result);
                                         done.Notify();
                                       });
  done.WaitForNotification();
  return status.error_code();
}

class TokenTest : public ::testing::Test {
 protected:
  void WriteTokens(const std::string& text, mode_t mode = 0600) const {
    const std::string fresh = Path("fresh");
    ASSERT_TRUE(testing::ReplaceFile(fresh, text).ok());
    ASSERT_EQ(chmod(fresh.c_str(), mode), 0);
    ASSERT_EQ(rename(fresh.c_str(), Path("tokens").c_str()), 0);
  }

  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }

  void Start() {
    WriteTokens("# first come\nvisitor\noperator\n");
    auto daemon = testing::Daemon::Start({.flags = {"--token_file=" + Path("tokens")}, .tcp = true});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  absl::Status Connect(const std::string& token) const {
    ConnectOptions options;
    options.token = token;
    const auto client = Client::Connect(daemon_->tcp_address(), options);
    return client.ok() ? (*client)->GetInfo().status() : client.status();
  }

  // What a daemon with this flag and listener says instead of starting.
  std::string StartError(const std::string& listen = ",127.0.0.1:0") const {
    const auto result =
        testing::RunProgram({testing::BinaryDirectory() + "/gemmd", "--metrics_listen=", "--workers=cpu",
                             absl::StrCat("--listen=unix:", Path("g.sock"), listen), "--token_file=" + Path("tokens")},
                            kPatience);
    if (!result.ok()) return result.status().ToString();
    EXPECT_EQ(result->exit_status, 1);
    return result->output;
  }

  const testing::TemporaryDirectory directory_;
  std::unique_ptr<testing::Daemon> daemon_;
};

TEST_F(TokenTest, EachTokenOfTheFileIsAccepted) {
  Start();
  EXPECT_TRUE(Connect("visitor").ok()) << Connect("visitor");
  EXPECT_TRUE(Connect("operator").ok());
}

TEST_F(TokenTest, WithoutATokenOrWithAnotherCallsAreRefused) {
  Start();
  EXPECT_EQ(Connect(""), absl::UnauthenticatedError("authorization: expected \"Bearer TOKEN\" once, got none"));
  EXPECT_EQ(Connect("stranger"),
            absl::UnauthenticatedError("authorization: expected a token of this gemmd, got another"));
  const auto refused = daemon_->Metric("gemmd_token_refusals_total");
  ASSERT_TRUE(refused.ok()) << refused.status();
  EXPECT_EQ(*refused, 2);
}

TEST_F(TokenTest, NoServiceIsLeftOut) {
  Start();
  const auto channel = MakeChannel(daemon_->tcp_address(), {});
  ASSERT_TRUE(channel.ok()) << channel.status();
  for (const char* method :
       {"/gemmd.v1.Gemm/Run", "/gemmd.v1.Gemm/Stream", "/gemmd.v1.Tensors/List", "/gemmd.v1.Sessions/Open",
        "/gemmd.v1.Admin/GetInfo", "/gemmd.v1.Admin/Nothing",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Healthy/Check"}) {
    EXPECT_EQ(BareCall(*channel, method), grpc::StatusCode::UNAUTHENTICATED) << method;
  }
}

TEST_F(TokenTest, HealthChecksNeedNone) {
  Start();
  const auto channel = MakeChannel(daemon_->tcp_address(), {});
  ASSERT_TRUE(channel.ok()) << channel.status();
  const auto health = CheckHealth(*channel, "", kPatience);
  ASSERT_TRUE(health.ok()) << health.status();
  EXPECT_EQ(*health, "SERVING");
}

TEST_F(TokenTest, TheUnixSocketNeedsNone) {
  Start();
  const auto client = Client::Connect(daemon_->address());
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE((*client)->GetInfo().ok());
}

TEST_F(TokenTest, AChangedFileCountsWithoutARestart) {
  Start();
  WriteTokens("successor\n");
  EXPECT_TRUE(testing::WaitUntil(kPatience, [this] { return Connect("successor").ok(); }));
  EXPECT_TRUE(absl::IsUnauthenticated(Connect("visitor")));
  EXPECT_EQ(daemon_->Metric("gemmd_config_reloads_total{file=\"tokens\",result=\"ok\"}").value_or(-1), 1);
}

TEST_F(TokenTest, TheProgramsPresentTheTokenOfTheirFile) {
  Start();
  ASSERT_TRUE(testing::ReplaceFile(Path("mine"), "# mine\nvisitor\n").ok());
  const std::string server = "--server=" + daemon_->tcp_address();
  const std::string token = "--token_file=" + Path("mine");
  const std::string bin = testing::BinaryDirectory();
  const auto gemm =
      testing::RunProgram({bin + "/gemmctl", server, token, "gemm", "--transport=inline", "--check"}, kPatience);
  ASSERT_TRUE(gemm.ok()) << gemm.status();
  EXPECT_EQ(gemm->exit_status, 0) << gemm->output;
  const auto load = testing::RunProgram(
      {bin + "/gemmload", server, token, "--transport=inline", "--path=stream", "--duration=200ms", "--warmup=0s"},
      kPatience);
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->exit_status, 0) << load->output;
}

TEST_F(TokenTest, AFileOfTwoTokensIsNoneToPresent) {
  ASSERT_TRUE(testing::ReplaceFile(Path("two"), "visitor\noperator\n").ok());
  const auto result = testing::RunProgram(
      {testing::BinaryDirectory() + "/gemmctl", "--server=localhost:1", "--token_file=" + Path("two"), "info"},
      kPatience);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->exit_status, 1);
  EXPECT_THAT(result->output, HasSubstr("expected one token, got 2"));
}

TEST_F(TokenTest, FilesThatGuardNothingAreRefusedAtTheStart) {
  EXPECT_THAT(StartError(), HasSubstr("expected a readable file, got No such file or directory"));
  WriteTokens("visitor\n", 0644);
  EXPECT_THAT(StartError(), HasSubstr("expected a file that only its owner and group may use, got mode 0644"));
  WriteTokens("visitor\n");
  EXPECT_THAT(StartError(""), HasSubstr("--token_file: expected a HOST:PORT in --listen to guard"));
  EXPECT_THAT(StartError(",0.0.0.0:0"),
              HasSubstr("is reachable from other machines; expected --tls_cert, or --insecure"));
}

}  // namespace
}  // namespace gemmd
