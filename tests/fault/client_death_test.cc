// SPDX-License-Identifier: Apache-2.0
// Clients that die by SIGKILL at every stage leave nothing behind: sessions, regions, tensors, descriptors and memory
// are what they were, within a second, and others go on.
#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include <gtest/gtest.h>

#include <csignal>
#include <memory>
#include <string>

namespace gemmd {
namespace {

constexpr absl::Duration kReaped = absl::Seconds(10);  // One second is the promise; machines that test are loaded.

struct Usage {
  uint32_t sessions = 0;
  uint64_t regions = 0;
  uint64_t region_bytes = 0;
  uint64_t tensors = 0;
  uint64_t tensor_bytes = 0;
  int descriptors = 0;

  bool operator==(const Usage&) const = default;
};

class ClientDeathTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto daemon = testing::Daemon::Start();
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  Usage UsageNow() {
    const auto info = client_->GetInfo();
    EXPECT_TRUE(info.ok()) << info.status();
    return {.sessions = info->sessions(),
            .regions = info->regions(),
            .region_bytes = info->region_bytes(),
            .tensors = info->tensors(),
            .tensor_bytes = info->tensor_bytes(),
            .descriptors = daemon_->OpenDescriptors()};
  }

  void LetOneDie() {
    auto doomed = testing::ChildProcess::Start(
        {testing::BinaryDirectory() + "/gemmd-doomed-client", daemon_->address(), GetParam()});
    ASSERT_TRUE(doomed.ok()) << doomed.status();
    const auto line = (*doomed)->ReadLine(absl::Seconds(60));
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_EQ(*line, absl::StrCat("at ", GetParam()));
    (*doomed)->Signal(SIGKILL);
    ASSERT_TRUE((*doomed)->WaitForExit(absl::Seconds(10)).ok());
  }

  std::unique_ptr<testing::Daemon> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_P(ClientDeathTest, LeavesNothingBehind) {
  // The first death may fill caches (threads, gRPC's own descriptors); after it nothing may be added.
  LetOneDie();
  ASSERT_TRUE(testing::WaitUntil(kReaped, [&] { return UsageNow().sessions == 1; }));
  ASSERT_TRUE(testing::WaitUntil(kReaped, [&] { return UsageNow().regions == 0; }));
  // Let gRPC close the dead connection before counting.
  Usage before = UsageNow();
  testing::WaitUntil(absl::Seconds(1), [&] {
    before = UsageNow();
    return false;
  });
  for (int i = 0; i < 4; ++i) LetOneDie();
  EXPECT_TRUE(testing::WaitUntil(kReaped, [&] { return UsageNow() == before; }))
      << "sessions " << UsageNow().sessions << "/" << before.sessions << " regions " << UsageNow().regions << "/"
      << before.regions << " tensors " << UsageNow().tensors << "/" << before.tensors << " descriptors "
      << UsageNow().descriptors << "/" << before.descriptors;

  const ProblemSpec spec{.op = Op::kDense, .m = 3, .n = 64, .k = 128};
  const auto weights = Weights::Create(client_.get(), spec, Transport::kHost, 1);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto problem = Problem::Create(client_.get(), spec, Transport::kHost, *weights, 2);
  ASSERT_TRUE(problem.ok()) << problem.status();
  const auto response = client_->Run((*problem)->request());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE((*problem)->Check(*response).ok());
}

INSTANTIATE_TEST_SUITE_P(Stages, ClientDeathTest,
                         ::testing::Values("session", "region", "region_no_reply", "half_message", "tensor",
                                           "half_written", "reading", "unary", "stream"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace gemmd
