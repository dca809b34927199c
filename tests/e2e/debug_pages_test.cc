// SPDX-License-Identifier: Apache-2.0
// The pages of the metrics listener: what they show, to whom, and what they never show.
#include "client/client.h"
#include "gemmd/v1/sessions.grpc.pb.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <memory>
#include <netinet/in.h>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kPages[] = {"/", "/statusz", "/queuez", "/regionz", "/kernelz", "/tracez", "/configz"};

class DebugPagesTest : public ::testing::Test {
 protected:
  void Start(const testing::DaemonOptions& options = {}) {
    absl::StatusOr<std::unique_ptr<testing::Daemon>> daemon = testing::Daemon::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  std::string Get(const std::string& path) const {
    const absl::StatusOr<std::string> page = daemon_->Http("GET", path);
    EXPECT_TRUE(page.ok()) << page.status();
    return page.value_or("");
  }

  std::string AllPages() const {
    std::string text = Get("/metrics");
    for (const char* path : kPages) text += Get(path);
    return text;
  }

  std::unique_ptr<Client> Connect(const std::string& client_name = "someone") const {
    ConnectOptions options;
    options.client_name = client_name;
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(daemon_->address(), options);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  std::unique_ptr<testing::Daemon> daemon_;
};

// D[8,8] of BF16 operands.
absl::StatusOr<v1::RunResponse> RunSmall(Client& client, const CallOptions& options = {}) {
  static const std::vector<uint16_t> ones(size_t{8} * 16, 0x3f80);
  return client.Dense({.scaling = Scaling::kNone,
                       .a = Inline<uint16_t>(ones, DType::kBf16, {8, 16}),
                       .b = Inline<uint16_t>(ones, DType::kBf16, {8, 16}),
                       .d = InlineResult(DType::kF32)},
                      options);
}

TEST_F(DebugPagesTest, EachPageIsADocumentOfItsOwn) {
  Start();
  for (const std::string path : kPages) {
    const std::string page = Get(path);
    EXPECT_THAT(page, StartsWith("HTTP/1.1 200 OK\r\n")) << path;
    EXPECT_THAT(page, HasSubstr("Content-Type: text/html; charset=utf-8\r\n")) << path;
    EXPECT_THAT(page, HasSubstr("Content-Security-Policy: default-src 'none'")) << path;
    EXPECT_THAT(page, HasSubstr(path == "/" ? "<h1>gemmd pages</h1>" : "<h1>gemmd " + path.substr(1) + "</h1>"));
    EXPECT_THAT(page, ::testing::EndsWith("</body>\n</html>\n")) << path;
    EXPECT_THAT(Get("/"), HasSubstr("<a href=\"" + path + "\">"));
  }
}

TEST_F(DebugPagesTest, MetricsAreAsPrometheusWantsThem) {
  Start();
  const std::string page = Get("/metrics");
  EXPECT_THAT(page, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(page, HasSubstr("\n# TYPE gemmd_requests_total counter\n"));
  EXPECT_THAT(page, HasSubstr("\ngemmd_sessions{origin=\"local\"} 0\n"));
}

TEST_F(DebugPagesTest, OnlyGetIsTaken) {
  Start();
  for (const char* path : {"/", "/statusz", "/metrics", "/nothing"}) {
    for (const char* method : {"POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"}) {
      const absl::StatusOr<std::string> answer = daemon_->Http(method, path);
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_THAT(*answer, StartsWith("HTTP/1.1 405 Method Not Allowed\r\n")) << method << " " << path;
      EXPECT_THAT(*answer, HasSubstr("\r\nAllow: GET\r\n"));
    }
  }
}

TEST_F(DebugPagesTest, OtherPathsAreNotFound) {
  Start();
  for (const char* path : {"/nothing", "/statusz/", "/statusz/more", "/../etc/passwd", "/%2e%2e/etc/passwd",
                           "/metrics/../../etc/passwd", "/index.html", "http://elsewhere/statusz", "*"}) {
    EXPECT_THAT(Get(path), Not(StartsWith("HTTP/1.1 200"))) << path;
    EXPECT_THAT(Get(path), Not(HasSubstr("root:"))) << path;
  }
  EXPECT_THAT(Get("/nothing"), StartsWith("HTTP/1.1 404 Not Found\r\n"));
}

TEST_F(DebugPagesTest, StatusSaysWhatRuns) {
  Start();
  const std::unique_ptr<Client> client = Connect();
  const absl::StatusOr<v1::ServerInfo> info = client->GetInfo();
  ASSERT_TRUE(info.ok());
  const std::string page = Get("/statusz");
  EXPECT_THAT(page, HasSubstr("<td>version</td><td>" + info->version() + "</td>"));
  EXPECT_THAT(page, HasSubstr("<td>health</td><td>SERVING</td>"));
  EXPECT_THAT(page, HasSubstr("<td>sessions</td><td>1 local, 0 remote</td>"));
  EXPECT_THAT(page, HasSubstr("<td>up for</td>"));
  EXPECT_THAT(page, HasSubstr("<td>message</td><td>64.0 MiB</td>"));
  const v1::WorkerInfo& worker = info->workers(0);
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<td>", worker.device(), "</td>")));
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<td>ready</td><td>", worker.pid(), "</td>")));
}

TEST_F(DebugPagesTest, MemoryIsListedBySessionWithoutNames) {
  Start();
  const std::unique_ptr<Client> first = Connect();
  const std::unique_ptr<Client> second = Connect();
  const absl::StatusOr<HostRegion> region = first->CreateHostRegion(3 << 20);
  ASSERT_TRUE(region.ok()) << region.status();
  const auto tensor = second->CreateTensor({.dtype = DType::kBf16, .shape = {1024, 1024}, .name = "layer-of-somebody"});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  const std::string page = Get("/regionz");
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<h2>Session ", first->session().id(), "</h2>")));
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<td>", region->id(), "</td><td>host</td><td>3.0 MiB</td><td>ready</td>")));
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<h2>Session ", second->session().id(), "</h2>")));
  EXPECT_THAT(page, HasSubstr(absl::StrCat("<td>", tensor->id(),
                                           "</td><td>private tensor, bf16</td><td>2.0 MiB</td>"
                                           "<td>on worker 0</td><td>0</td>")));
  EXPECT_THAT(page, Not(HasSubstr("layer-of-somebody")));
}

TEST_F(DebugPagesTest, NothingOfASessionThatIsItsOwnAppears) {
  const testing::TemporaryDirectory directory;
  const std::string tokens = directory.path() + "/tokens";
  ASSERT_TRUE(testing::ReplaceFile(tokens, "the-token-of-somebody\n").ok());
  ASSERT_EQ(chmod(tokens.c_str(), 0600), 0);
  Start({.flags = {"--token_file=" + tokens}, .tcp = true});

  // A session whose secret the test knows.
  const auto channel = grpc::CreateChannel(daemon_->address(), grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  v1::OpenSessionRequest open;
  open.set_client_name("name-of-a-client");
  const auto events = v1::Sessions::NewStub(channel)->Open(&context, open);
  v1::SessionEvent event;
  ASSERT_TRUE(events->Read(&event));
  ASSERT_EQ(event.secret().size(), 32u);

  const std::unique_ptr<Client> client = Connect("<script>alert('client')</script>");
  const std::string shared_memory = absl::StrCat("/gemmd-hidden-name-", getpid());
  const auto shm = client->CreateSharedMemory(shared_memory, 4096);
  ASSERT_TRUE(shm.ok()) << shm.status();
  for (const bool shared : {false, true}) {
    const auto tensor =
        client->CreateTensor({.dtype = DType::kBf16, .shape = {8, 8}, .name = "<b>hidden\"tensor'&", .shared = shared});
    ASSERT_TRUE(tensor.ok()) << tensor.status();
  }
  ASSERT_TRUE(RunSmall(*client).ok());

  const std::string pages = AllPages();
  for (const std::string& hidden : {event.secret(), std::string("name-of-a-client"), std::string("alert("),
                                    std::string("hidden"), std::string("the-token-of-somebody")}) {
    EXPECT_FALSE(absl::StrContains(pages, hidden)) << hidden;
  }
  EXPECT_TRUE(absl::StrContains(pages, "<td>--token_file</td><td>" + tokens + "</td><td>given</td>"));
  context.TryCancel();
}

TEST_F(DebugPagesTest, WhatIsShownIsText) {
  const testing::TemporaryDirectory directory;
  Start({.flags = {"--kernel_cache_dir=" + directory.path() + "/<script>alert(\"x\")</script>&'"}});
  for (const char* path : {"/configz", "/kernelz"}) {
    EXPECT_THAT(Get(path), HasSubstr("/&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;")) << path;
  }
  EXPECT_FALSE(absl::StrContains(AllPages(), "<script"));
}

TEST_F(DebugPagesTest, FlagsAreShownAsTheyAre) {
  Start({.flags = {"--max_sessions=77", "--trace_requests=5"}});
  const std::string page = Get("/configz");
  EXPECT_THAT(page, HasSubstr("<td>--max_sessions</td><td>77</td><td>given</td>"));
  EXPECT_THAT(page, HasSubstr("<td>--insecure</td><td>false</td><td>default</td>"));
}

TEST_F(DebugPagesTest, TheQueueOfEachWorkerIsShown) {
  Start();
  EXPECT_THAT(Get("/queuez"), HasSubstr("<td>ready</td><td>0</td><td>-</td><td>0</td><td>0.0 us</td>"));
}

TEST_F(DebugPagesTest, TheKernelsOfEachWorkerAreShown) {
  Start({.flags = {"--kernel_cache_dir=none"}});
  const std::string page = Get("/kernelz");
  EXPECT_THAT(page, HasSubstr("kept in memory only"));
  EXPECT_THAT(page, HasSubstr("<td>0</td><td>" + daemon_->device() + "</td><td>0</td><td>0 B</td>"));
}

TEST_F(DebugPagesTest, TheLatestRequestsAreShown) {
  Start({.flags = {"--trace_requests=2"}});
  const std::unique_ptr<Client> client = Connect();
  CallOptions options;
  for (uint64_t low = 1; low <= 3; ++low) {
    options.trace = TraceContext{{0xabc, low}, 7, true};
    ASSERT_TRUE(RunSmall(*client, options).ok());
  }
  options.trace = TraceContext{{0xdef, 1}, 7, false};
  ASSERT_TRUE(RunSmall(*client, options).ok());
  const std::string page = Get("/tracez");
  EXPECT_THAT(page, HasSubstr(TraceIdHex({0xabc, 3})));
  EXPECT_THAT(page, HasSubstr(TraceIdHex({0xabc, 2})));
  EXPECT_THAT(page, Not(HasSubstr(TraceIdHex({0xabc, 1})))) << "more than --trace_requests";
  EXPECT_THAT(page, Not(HasSubstr(TraceIdHex({0xdef, 1})))) << "not sampled";
  EXPECT_THAT(page, HasSubstr("<td>dense</td><td>8x8x16</td><td>inline</td><td>OK</td><td>0</td><td>1</td>"));
}

// Whoever scrapes from another machine gets metrics and nothing else.
class RemoteDebugPagesTest : public DebugPagesTest {
 protected:
  // An address of this machine that is not loopback: a connection to it comes from it. Empty if there is none.
  static std::string OtherAddress() {
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) return "";
    std::string found;
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
      char text[INET_ADDRSTRLEN] = {};
      inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr, text, sizeof(text));
      if (!absl::StartsWith(text, "127.")) found = text;
    }
    freeifaddrs(list);
    return found;
  }
  void StartOn(const std::string& address, std::vector<std::string> flags) {
    flags.push_back("--metrics_listen=" + address + ":0");
    Start({.flags = std::move(flags)});
  }
};

TEST_F(RemoteDebugPagesTest, AnotherMachineGetsMetricsOnly) {
  const std::string address = OtherAddress();
  if (address.empty()) GTEST_SKIP() << "this machine has loopback addresses only";
  StartOn(address, {});
  for (const char* path : kPages) EXPECT_THAT(Get(path), StartsWith("HTTP/1.1 403 Forbidden\r\n")) << path;
  EXPECT_THAT(Get("/metrics"), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(RemoteDebugPagesTest, UnlessTheOperatorSaysSo) {
  const std::string address = OtherAddress();
  if (address.empty()) GTEST_SKIP() << "this machine has loopback addresses only";
  StartOn(address, {"--remote_debug_pages"});
  EXPECT_THAT(Get("/statusz"), StartsWith("HTTP/1.1 200 OK\r\n"));
}

}  // namespace
}  // namespace gemmd
