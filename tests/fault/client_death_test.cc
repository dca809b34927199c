// SPDX-License-Identifier: Apache-2.0
// Clients that die by SIGKILL at every stage leave nothing behind: sessions, regions, tensors, jobs, descriptors,
// mappings and memory of gemmd and its worker are what they were, within a second, and others go on.
#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <ostream>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

constexpr absl::Duration kReaped = absl::Seconds(10);  // One second is the promise; machines that test are loaded.

// What allocators may keep. Every stage with memory of its own takes 8 MiB or more, and there are four deaths; but
// sanitizers keep what was freed.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kMemorySlack = int64_t{2} << 30;
#else
constexpr int64_t kMemorySlack = int64_t{24} << 20;
#endif

constexpr char kDeviceMebibytes[] = "64";

// On a GPU compilers and the driver keep memory for every kernel that merged requests meet for the first time: up to
// 65 MiB were seen, and no more after 16 deaths than after 4.
constexpr int64_t kGpuMemorySlack = int64_t{96} << 20;

struct Usage {
  uint32_t sessions = 0;
  uint64_t regions = 0;
  uint64_t region_bytes = 0;
  uint64_t tensors = 0;
  uint64_t tensor_bytes = 0;
  double arena_bytes = 0;
  double requests = 0;
  double worker_jobs = 0;
  int descriptors = 0;
  int mappings = 0;
  int worker_descriptors = 0;
  int worker_mappings = 0;

  bool operator==(const Usage&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Usage& usage) {
  return out << "sessions " << usage.sessions << ", regions " << usage.regions << " (" << usage.region_bytes
             << " bytes), tensors " << usage.tensors << " (" << usage.tensor_bytes << " bytes), arena "
             << usage.arena_bytes << ", requests " << usage.requests << ", jobs " << usage.worker_jobs
             << ", descriptors " << usage.descriptors << ", mappings " << usage.mappings << ", of the worker "
             << usage.worker_descriptors << " and " << usage.worker_mappings;
}

class ClientDeathTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto daemon = testing::Daemon::Start({.flags = {}, .tcp = true});
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
            .arena_bytes = Metric("gemmd_arena_used_bytes"),
            .requests = Metric("gemmd_inflight_requests"),
            .worker_jobs = Metric(absl::StrCat("gemmd_worker_inflight_requests{device=\"", daemon_->device(), "\"}")),
            .descriptors = daemon_->OpenDescriptors(),
            .mappings = testing::SharedMappings(daemon_->process().pid()),
            .worker_descriptors = testing::OpenDescriptors(Worker()),
            .worker_mappings = testing::SharedMappings(Worker())};
  }

  double Metric(const std::string& series) const { return daemon_->Metric(series).value_or(-1); }
  pid_t Worker() const { return daemon_->WorkerPids().at(0); }
  int64_t MemoryNow() const {
    return testing::AnonymousBytes(daemon_->process().pid()) + testing::AnonymousBytes(Worker());
  }

  void LetOneDie() {
    const bool remote = absl::StartsWith(GetParam(), "tcp_");
    const std::string address = remote ? daemon_->tcp_address() : daemon_->address();
    const std::string stage(absl::StripPrefix(GetParam(), "tcp_"));
    // Nobody but us is left to remove a killed client's object.
    const std::string name = absl::StrCat("/gemmd-doomed-", getpid());
    const bool on_device = stage == "pool" || absl::StartsWith(stage, "device");
    auto doomed = testing::ChildProcess::Start(
        {testing::BinaryDirectory() + "/gemmd-doomed-client", address, stage, on_device ? kDeviceMebibytes : name});
    ASSERT_TRUE(doomed.ok()) << doomed.status();
    const auto line = (*doomed)->ReadLine(absl::Seconds(60));
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_EQ(*line, absl::StrCat("at ", stage));
    (*doomed)->Signal(SIGKILL);
    shm_unlink(name.c_str());
    ASSERT_TRUE((*doomed)->WaitForExit(absl::Seconds(10)).ok());
  }

  std::unique_ptr<testing::Daemon> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_P(ClientDeathTest, LeavesNothingBehind) {
  // The first death may fill caches (threads, gRPC's own descriptors); after it nothing may be added.
  LetOneDie();
  ASSERT_TRUE(testing::WaitUntil(kReaped, [&] {
    const Usage usage = UsageNow();
    return usage.sessions == 1 && usage.regions == 0 && usage.tensors == 0 && usage.requests == 0 &&
           usage.worker_jobs == 0 && usage.arena_bytes == 0;
  })) << UsageNow();
  // Let gRPC close the dead connection before counting.
  Usage before = UsageNow();
  testing::WaitUntil(absl::Seconds(1), [&] {
    before = UsageNow();
    return false;
  });
  const int64_t slack = absl::StartsWith(daemon_->device(), "GPU-") ? kGpuMemorySlack : kMemorySlack;
  const int64_t memory_before = MemoryNow();
  for (int i = 0; i < 4; ++i) LetOneDie();
  EXPECT_TRUE(testing::WaitUntil(kReaped, [&] { return UsageNow() == before; }))
      << UsageNow() << "\nbefore: " << before;
  EXPECT_TRUE(testing::WaitUntil(kReaped, [&] { return MemoryNow() < memory_before + slack; }))
      << MemoryNow() << " bytes, before: " << memory_before;

  const ProblemSpec spec{.op = Op::kDense, .m = 3, .n = 64, .k = 128};
  const auto weights = Weights::Create(client_.get(), spec, Transport::kHost, 1);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto problem = Problem::Create(client_.get(), spec, Transport::kHost, *weights, 2);
  ASSERT_TRUE(problem.ok()) << problem.status();
  const auto response = client_->Run((*problem)->request());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE((*problem)->Check(*response).ok());
}

// Memory of the GPU can be shared where the workers are on one.
std::vector<std::string> StagesHere() {
  std::vector<std::string> stages = {"session",      "tcp_session", "region",     "region_no_reply", "shared_memory",
                                     "half_message", "tensor",      "tcp_tensor", "half_written",    "half_content",
                                     "reading",      "unary",       "stream",     "deaf_stream",     "pool"};
  const char* const workers = std::getenv("GEMMD_TEST_WORKERS");
  if (workers != nullptr && absl::StartsWith(workers, "gpu")) stages.insert(stages.end(), {"device", "device_ipc"});
  return stages;
}

INSTANTIATE_TEST_SUITE_P(Stages, ClientDeathTest, ::testing::ValuesIn(StagesHere()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace gemmd
