// SPDX-License-Identifier: Apache-2.0
// Several daemons behind one list of addresses, each with the same manifest of tensors, are restarted one after the
// other under load, and no client notices. Once on three loopback addresses, and once, as root where network namespaces
// can be made, as three machines: each daemon in a namespace of its own behind a virtual cable.
#include "client/client.h"
#include "client/random_data.h"
#include "client/reference.h"
#include "client/safetensors.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

constexpr int kReplicas = 3;
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int64_t kM = 8, kN = 256, kK = 256;
constexpr char kIp[] = "/sbin/ip";

// Where a replica runs.
struct Place {
  std::string host;
  std::vector<std::string> launcher;
};

// Three network namespaces, each with one end of a virtual cable whose other end is ours. Gone with the object, and the
// cables with them.
class Machines {
 public:
  // Errors: why there can be none.
  absl::Status Make() {
    if (access(kIp, X_OK) != 0) return absl::UnimplementedError("no program ip (package iproute2)");
    for (int i = 0; i < kReplicas; ++i) {
      const std::string name = absl::StrCat("gemmd-test-", getpid(), "-", i);
      const std::string cable = absl::StrCat("gt", getpid() % 100'000'000, "v", i);  // At most 15 characters.
      // Of the block for benchmarks between networks (RFC 2544): nobody's.

      const std::string ours = absl::StrCat("198.18.", getpid() % 256, ".", i * 4 + 1);
      const std::string theirs = absl::StrCat("198.18.", getpid() % 256, ".", i * 4 + 2);
      const std::vector<std::string> commands = {
          "netns add " + name,
          absl::StrCat("link add ", cable, " type veth peer name eth0 netns ", name),
          absl::StrCat("addr add ", ours, "/30 dev ", cable),
          absl::StrCat("link set ", cable, " up"),
          absl::StrCat("-n ", name, " addr add ", theirs, "/30 dev eth0"),
          absl::StrCat("-n ", name, " link set eth0 up"),
          absl::StrCat("-n ", name, " link set lo up")};
      for (const std::string& command : commands) {
        if (absl::Status status = Ip(command); !status.ok()) return status;
        if (command == commands[0]) names_.push_back(name);
      }
      places_.push_back({theirs, {kIp, "netns", "exec", name}});
    }
    return absl::OkStatus();
  }
  ~Machines() {
    for (const std::string& name : names_) Ip("netns del " + name).IgnoreError();
  }

  const std::vector<Place>& places() const { return places_; }

 private:
  static absl::Status Ip(const std::string& words) {
    std::vector<std::string> arguments = {kIp};
    for (const absl::string_view word : absl::StrSplit(words, ' ')) arguments.emplace_back(word);
    const auto result = testing::RunProgram(arguments, kPatience);
    if (!result.ok()) return result.status();
    if (result->exit_status == 0) return absl::OkStatus();
    return absl::PermissionDeniedError(absl::StrCat("ip ", words, ": ", result->output));
  }

  std::vector<std::string> names_;
  std::vector<Place> places_;
};

class RollingRestartTest : public ::testing::Test {
 protected:
  void StartAll(const std::vector<Place>& places) {
    weights_.resize(static_cast<size_t>(kN * kK));
    FillRandom(1, kN, kK, absl::MakeSpan(weights_));
    const StoredArray file{
        DType::kF32, {kN, kK}, std::string(reinterpret_cast<const char*>(weights_.data()), weights_.size() * 4)};
    ASSERT_TRUE(WriteFile(folder_.path() + "/w.safetensors", FormatSafetensors({{"w", file}})).ok());
    ASSERT_TRUE(WriteFile(folder_.path() + "/manifest.json", R"({"tensors": [
        {"name": "w", "file": {"path": "w.safetensors"}, "quantize": "BLOCK_128X128"}]})")
                    .ok());
    ASSERT_TRUE(WriteFile(folder_.path() + "/shapes", absl::StrCat("1 dense ", kM, " ", kN, " ", kK, "\n")).ok());
    places_ = places;
    for (const Place& place : places_) {
      addresses_.push_back(place.host + ":0");
      replicas_.emplace_back();
      StartReplica(replicas_.size() - 1);
      if (HasFatalFailure()) return;
      addresses_.back() = replicas_.back()->tcp_address();
    }
  }

  void StartReplica(size_t i) {
    auto daemon = testing::Daemon::Start(
        {.flags = {"--insecure", "--tensor_dirs=" + folder_.path(),
                   "--tensor_manifest=" + folder_.path() + "/manifest.json", "--max_connection_age=500ms",
                   "--drain_delay=300ms", "--worker_threads=1", "--log_level=warning"},
         .tcp_listen = addresses_[i],
         .launcher = places_[i].launcher});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    replicas_[i] = *std::move(daemon);
  }

  // Stops it as an operator does, and starts it at the same address.
  void Restart(size_t i) {
    replicas_[i]->process().Signal(SIGTERM);
    const auto exit = replicas_[i]->process().WaitForExit(kPatience);
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_TRUE(WIFEXITED(*exit) && WEXITSTATUS(*exit) == 0) << *exit;
    replicas_[i].reset();
    StartReplica(i);
  }

  std::string Target() const { return absl::StrCat("ipv4:", absl::StrJoin(addresses_, ",")); }

  // Requests that a replica has answered with OK since its start.
  double Answered(size_t i) const {
    const auto page = replicas_[i]->Metrics();
    EXPECT_TRUE(page.ok()) << page.status();
    double sum = 0;
    for (const absl::string_view line : absl::StrSplit(page.ok() ? *page : "", '\n')) {
      double value = 0;
      if (!absl::StartsWith(line, "gemmd_requests_total{") || !absl::StrContains(line, "code=\"OK\"")) continue;
      if (absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) sum += value;
    }
    return sum;
  }

  void WaitUntilAnswering(size_t i) {
    EXPECT_TRUE(testing::WaitUntil(kPatience, [&] { return Answered(i) >= 20; })) << "replica " << i;
  }

  // gemmload with an open loop, again and again; what it says of each run that had an error.
  void LoadUntilStopped() {
    while (!stop_.load()) {
      const auto result =
          testing::RunProgram({testing::BinaryDirectory() + "/gemmload", "--server=" + Target(), "--round_robin",
                               "--mode=open", "--rate=200", "--transport=inline", "--weights=name:w",
                               "--shapes=" + folder_.path() + "/shapes", "--warmup=0s", "--duration=2s", "--json"},
                              kPatience);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->exit_status, 0) << result->output;
      ++load_runs_;
    }
  }

  // One client that checks each of its results, over one channel from the first to the last.
  void CheckUntilStopped() {
    const auto client = Client::Connect(Target(), {.open_session = false, .round_robin = true});
    ASSERT_TRUE(client.ok()) << client.status();
    std::vector<uint8_t> a(static_cast<size_t>(kM * kK));
    std::vector<float> sfa(static_cast<size_t>(kM * kK / 128));
    FillRandomQuantized(2, kM, kK, QuantizeBlock::k1x128, absl::MakeSpan(a), absl::MakeSpan(sfa));
    const reference::Quantized b =
        reference::Quantize(reference::RowMajor(weights_.data(), DType::kF32, kN, kK), QuantizeBlock::k128x128);
    const DenseCall call{.a = Inline<uint8_t>(a, DType::kE4m3, {kM, kK}),
                         .sfa = Inline<float>(sfa, DType::kF32, {kM, kK / 128}),
                         .b = ResidentNamed("w"),
                         .sfb = ResidentNamed("w.sf"),
                         .d = InlineResult(DType::kF32)};
    while (!stop_.load()) {
      const auto response = (*client)->Dense(call, {.timeout = absl::Seconds(20)});
      ASSERT_TRUE(response.ok()) << response.status() << " after " << checked_ << " requests";
      ASSERT_EQ(response->d().size(), static_cast<size_t>(kM * kN * 4));
      const reference::Product product{{reference::RowMajor(a.data(), DType::kE4m3, kM, kK),
                                        reference::RowMajor(sfa.data(), DType::kF32, kM, kK / 128), 1},
                                       {reference::RowMajor(b.q.data(), DType::kE4m3, kN, kK),
                                        reference::RowMajor(b.sf.data(), DType::kF32, kN / 128, kK / 128), 128},
                                       {},
                                       reference::RowMajor(response->d().data(), DType::kF32, kM, kN)};
      const absl::Status right =
          reference::CheckLimits(reference::CheckProducts({product}), reference::LimitsFor(DType::kF32));
      ASSERT_TRUE(right.ok()) << right;
      ++checked_;
    }
  }

  // All replicas, twice around.
  void RollAll() {
    for (int round = 0; round < 2; ++round) {
      for (size_t i = 0; i < replicas_.size() && !HasFailure(); ++i) {
        WaitUntilAnswering(i);
        Restart(i);
        if (HasFatalFailure()) return;
        WaitUntilAnswering(i);
      }
    }
  }

  void ExpectThatNobodyNotices(const std::vector<Place>& places) {
    StartAll(places);
    if (HasFatalFailure()) return;
    std::thread load([this] { LoadUntilStopped(); });
    std::thread check([this] { CheckUntilStopped(); });
    RollAll();
    stop_.store(true);
    load.join();
    check.join();
    EXPECT_GT(load_runs_, 0);
    EXPECT_GT(checked_, 100);
    std::printf("%d checked products, %d runs of gemmload\n", checked_, load_runs_);
  }

  const testing::TemporaryDirectory folder_;
  std::vector<float> weights_;
  std::vector<Place> places_;
  std::vector<std::string> addresses_;
  std::vector<std::unique_ptr<testing::Daemon>> replicas_;
  std::atomic<bool> stop_{false};
  int load_runs_ = 0;  // Of the thread that loads; read when it has ended.
  int checked_ = 0;    // The same.
};

TEST_F(RollingRestartTest, NobodyNoticesOnLoopbackAddresses) {
  // Addresses of their own, which outgoing connections do not use: a port stays free while its daemon is away.
  ExpectThatNobodyNotices({{"127.0.0.2", {}}, {"127.0.0.3", {}}, {"127.0.0.4", {}}});
}

TEST_F(RollingRestartTest, NobodyNoticesOnSeveralMachines) {
  Machines machines;
  if (const absl::Status made = machines.Make(); !made.ok()) GTEST_SKIP() << made;
  ExpectThatNobodyNotices(machines.places());
  replicas_.clear();  // Before their networks.
}

TEST_F(RollingRestartTest, ASessionIsOneDaemons) {
  const auto client = Client::Connect("ipv4:127.0.0.1:1,127.0.0.1:2", {.round_robin = true});
  EXPECT_TRUE(absl::IsInvalidArgument(client.status())) << client.status();
}

}  // namespace
}  // namespace gemmd
