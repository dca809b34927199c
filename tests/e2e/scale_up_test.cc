// SPDX-License-Identifier: Apache-2.0
// A daemon that joins later gets its share of the calls of a client that was there before: --max_connection_age ends
// the client's connections, so its gRPC asks the name again. Half a minute, because gRPC asks no sooner.
#include "client/client.h"
#include "client/operations.h"
#include "client/tensor_view.h"
#include "tests/e2e/name_server.h"
#include "tests/e2e/process.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

// gRPC asks a name server at most every 30 s (its DNS resolver's minimum between two questions).
constexpr absl::Duration kPatience = absl::Seconds(90);
constexpr int64_t kM = 1, kN = 128, kK = 128;

absl::StatusOr<std::unique_ptr<testing::Daemon>> StartDaemon(const std::string& listen) {
  return testing::Daemon::Start(
      {.flags = {"--insecure", "--max_connection_age=500ms", "--worker_threads=1"}, .tcp_listen = listen});
}

double Answered(const testing::Daemon& daemon) {
  return daemon.Metric("gemmd_requests_total{code=\"OK\",op=\"dense\",transport=\"inline\"}").value_or(-1);
}

TEST(ScaleUpTest, AClientThatWasThereBeforeFindsADaemonThatIsAdded) {
  const auto names = testing::NameServer::Start();
  ASSERT_TRUE(names.ok()) << names.status();
  const auto first = StartDaemon("127.0.0.2:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string port = (*first)->tcp_address().substr((*first)->tcp_address().rfind(':'));
  (*names)->SetAddresses({"127.0.0.2"});
  const auto client = Client::Connect(absl::StrCat("dns://", (*names)->address(), "/gemmd.test", port),
                                      {.open_session = false, .round_robin = true});
  ASSERT_TRUE(client.ok()) << client.status();

  const std::vector<uint16_t> a(kM * kK), b(kN * kK);
  const DenseCall call{.scaling = Scaling::kNone,
                       .a = Inline<uint16_t>(a, DType::kBf16, {kM, kK}),
                       .b = Inline<uint16_t>(b, DType::kBf16, {kN, kK}),
                       .d = InlineResult(DType::kF32)};
  const auto alone = (*client)->Dense(call);
  ASSERT_TRUE(alone.ok()) << alone.status();
  const auto second = StartDaemon("127.0.0.3" + port);
  ASSERT_TRUE(second.ok()) << second.status();
  (*names)->SetAddresses({"127.0.0.2", "127.0.0.3"});

  absl::Status status;
  EXPECT_TRUE(testing::WaitUntil(kPatience, [&] {
    status = (*client)->Dense(call, {.timeout = absl::Seconds(20)}).status();
    return !status.ok() || Answered(**second) >= 10;
  }));
  EXPECT_TRUE(status.ok()) << status;
  const double before = Answered(**first);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE((*client)->Dense(call).ok());
  EXPECT_GT(Answered(**first), before);
}

}  // namespace
}  // namespace gemmd
