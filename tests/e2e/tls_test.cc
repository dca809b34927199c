// SPDX-License-Identifier: Apache-2.0
// TLS on HOST:PORT: who may connect, what the programs need for it, and which files a daemon does not start with.
// Certificates are made by the openssl command.
#include "client/client.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

std::string Content(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  return content.str();
}

class TlsTest : public ::testing::Test {
 protected:
  std::string File(const std::string& name) const { return directory_.path() + "/" + name; }

  void OpenSsl(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"/usr/bin/env", "openssl"});
    const auto result = testing::RunProgram(arguments, kPatience);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->exit_status, 0) << result->output;
  }

  std::vector<std::string> NewCertificate(const std::string& name) const {
    return {"req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-noenc",
            "-days",
            "1",
            "-keyout",
            File(name + ".key"),
            "-out",
            File(name + ".pem"),
            "-subj",
            "/CN=gemmd test " + name};
  }

  // NAME.pem and NAME.key.
  void MakeAuthority(const std::string& name) const { OpenSsl(NewCertificate(name)); }

  void MakeCertificate(const std::string& name, const std::string& authority) const {
    std::vector<std::string> arguments = NewCertificate(name);
    for (const std::string& more :
         {std::string("-CA"), File(authority + ".pem"), std::string("-CAkey"), File(authority + ".key"),
          std::string("-addext"), std::string("subjectAltName=IP:127.0.0.1"), std::string("-addext"),
          std::string("basicConstraints=critical,CA:FALSE")}) {
      arguments.push_back(more);
    }
    OpenSsl(arguments);
  }

  void SetUp() override {
    MakeAuthority("authority");
    MakeAuthority("stranger");
    MakeCertificate("server", "authority");
  }

  void Start(std::vector<std::string> flags = {}) {
    flags.push_back("--tls_cert=" + File("server.pem"));
    flags.push_back("--tls_key=" + File("server.key"));
    auto daemon = testing::Daemon::Start({.flags = flags, .tcp = true});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  // `identity`: whose certificate the client shows; empty: none.
  absl::Status Connect(const std::string& authority, const std::string& identity = "",
                       absl::Duration timeout = absl::Seconds(20)) const {
    ConnectOptions options{.connect_timeout = timeout, .tls = true};
    options.tls_root_certificates = Content(File(authority + ".pem"));
    if (!identity.empty()) {
      options.tls_certificate = Content(File(identity + ".pem"));
      options.tls_key = Content(File(identity + ".key"));
    }
    const auto client = Client::Connect(daemon_->tcp_address(), options);
    return client.ok() ? (*client)->GetInfo().status() : client.status();
  }

  // What a client that is to be refused waits for.
  absl::Status ConnectInVain(const std::string& authority, const std::string& identity = "") const {
    return Connect(authority, identity, absl::Seconds(2));
  }

  testing::ProgramResult Run(const std::string& program, std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(),
                     {testing::BinaryDirectory() + "/" + program, "--server=" + daemon_->tcp_address(), "--tls"});
    const auto result = testing::RunProgram(arguments, kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::ProgramResult();
  }

  // What a daemon says that does not start.
  std::string StartError(const std::vector<std::string>& flags) const {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmd", "--metrics_listen=", "--workers=cpu",
                                          absl::StrCat("--listen=unix:", File("g.sock"), ",127.0.0.1:0")};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const auto result = testing::RunProgram(arguments, kPatience);
    if (!result.ok()) return result.status().ToString();
    EXPECT_EQ(result->exit_status, 1);
    return result->output;
  }

  const testing::TemporaryDirectory directory_;
  std::unique_ptr<testing::Daemon> daemon_;
};

TEST_F(TlsTest, TheProgramsComputeOverTls) {
  Start();
  const std::string authority = "--tls_ca=" + File("authority.pem");
  const auto gemm = Run("gemmctl", {authority, "gemm", "--transport=inline", "--check"});
  EXPECT_EQ(gemm.exit_status, 0) << gemm.output;
  const auto load = Run("gemmload", {authority, "--transport=inline", "--duration=200ms", "--warmup=0s", "--check"});
  EXPECT_EQ(load.exit_status, 0) << load.output;
}

TEST_F(TlsTest, AClientOfAnotherAuthorityDoesNotConnectAndIsToldWhy) {
  Start();
  const absl::Status status = ConnectInVain("stranger");
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("certificate verify failed"));
  EXPECT_TRUE(Connect("authority").ok());
}

TEST_F(TlsTest, PlainTextIsNotServed) {
  Start();
  const ConnectOptions options{.connect_timeout = absl::Seconds(2)};
  EXPECT_TRUE(absl::IsUnavailable(Client::Connect(daemon_->tcp_address(), options).status()));
  EXPECT_TRUE(Client::Connect(daemon_->address(), options).ok());
}

TEST_F(TlsTest, WithAClientAuthorityOnlyItsCertificatesAreServed) {
  Start({"--tls_client_ca=" + File("authority.pem")});
  MakeCertificate("client", "authority");
  MakeCertificate("impostor", "stranger");
  EXPECT_TRUE(absl::IsUnavailable(ConnectInVain("authority")));
  EXPECT_TRUE(absl::IsUnavailable(ConnectInVain("authority", "impostor")));
  EXPECT_TRUE(Connect("authority", "client").ok()) << Connect("authority", "client");
  const auto info = Run("gemmctl", {"--tls_ca=" + File("authority.pem"), "--tls_cert=" + File("client.pem"),
                                    "--tls_key=" + File("client.key"), "info"});
  EXPECT_EQ(info.exit_status, 0) << info.output;
}

TEST_F(TlsTest, AReplacedCertificateIsServedWithoutARestart) {
  Start();
  ASSERT_TRUE(Connect("authority").ok());
  ASSERT_TRUE(testing::ReplaceFile(File("server.pem"), "not a certificate").ok());
  EXPECT_TRUE(Connect("authority").ok());
  MakeCertificate("next", "stranger");
  ASSERT_TRUE(testing::ReplaceFile(File("server.key"), Content(File("next.key"))).ok());
  ASSERT_TRUE(testing::ReplaceFile(File("server.pem"), Content(File("next.pem"))).ok());
  EXPECT_TRUE(testing::WaitUntil(kPatience, [this] { return ConnectInVain("stranger").ok(); }));
  EXPECT_TRUE(absl::IsUnavailable(ConnectInVain("authority")));
}

TEST_F(TlsTest, TokensAreAskedForOverTlsToo) {
  ASSERT_TRUE(testing::ReplaceFile(File("token"), "visitor\n").ok());
  ASSERT_EQ(chmod(File("token").c_str(), 0600), 0);
  Start({"--token_file=" + File("token")});
  EXPECT_TRUE(absl::IsUnauthenticated(Connect("authority")));
  const auto info = Run("gemmctl", {"--tls_ca=" + File("authority.pem"), "--token_file=" + File("token"), "info"});
  EXPECT_EQ(info.exit_status, 0) << info.output;
}

TEST_F(TlsTest, FilesThatCannotBeServedAreNamedAtTheStart) {
  const std::string cert = "--tls_cert=" + File("server.pem");
  const std::string key = "--tls_key=" + File("server.key");
  EXPECT_THAT(StartError({cert}), HasSubstr("--tls_cert and --tls_key: expected both or none"));
  EXPECT_THAT(StartError({"--tls_cert=/nonexistent", key}),
              HasSubstr("--tls_cert: expected a readable file, got /nonexistent: No such file or directory"));
  ASSERT_TRUE(testing::ReplaceFile(File("empty"), "").ok());
  EXPECT_THAT(StartError({"--tls_cert=" + File("empty"), key}),
              HasSubstr(absl::StrCat("--tls_cert: expected a PEM certificate in ", File("empty"), ", got none")));
  EXPECT_THAT(StartError({cert, "--tls_key=" + File("server.pem")}),
              HasSubstr("--tls_key: expected a PEM private key without passphrase in "));
  EXPECT_THAT(StartError({cert, "--tls_key=" + File("stranger.key")}),
              HasSubstr(absl::StrCat("--tls_key: expected the key of ", File("server.pem"), " in ")));
  EXPECT_THAT(StartError({cert, key, "--tls_client_ca=" + File("server.key")}),
              HasSubstr("--tls_client_ca: expected a PEM certificate in "));
}

TEST_F(TlsTest, ACertificateCutShortIsRefusedAtTheStart) {
  const std::string whole = Content(File("server.pem"));
  const std::string cut = whole.substr(0, whole.size() / 2);
  ASSERT_TRUE(testing::ReplaceFile(File("cut.pem"), whole + cut).ok());
  EXPECT_THAT(StartError({"--tls_cert=" + File("cut.pem"), "--tls_key=" + File("server.key")}),
              HasSubstr("--tls_cert: expected PEM certificates in "));
}

TEST_F(TlsTest, ProgramsRefuseFlagsThatContradictEachOther) {
  const auto run = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), testing::BinaryDirectory() + "/gemmctl");
    arguments.push_back("info");
    const auto result = testing::RunProgram(arguments, kPatience);
    return result.ok() && result->exit_status == 1 ? result->output : "";
  };
  EXPECT_THAT(run({"--tls"}), HasSubstr("--tls: expected a host:port in --server"));
  EXPECT_THAT(run({"--tls_ca=/nonexistent"}), HasSubstr("--tls_ca: expected --tls with it"));
  EXPECT_THAT(run({"--server=localhost:1", "--tls", "--tls_cert=x"}), HasSubstr("expected both or none"));
}

}  // namespace
}  // namespace gemmd
