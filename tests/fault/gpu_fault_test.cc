// SPDX-License-Identifier: Apache-2.0
// Real faults on a real GPU: an illegal access, a kernel that never ends, no memory. Only what was on the device fails;
// the worker is replaced within two seconds with every region and resident tensor; memory that ran out comes back.
#include "tests/fault/fault_fixture.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <signal.h>
#include <string>
#include <vector>

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

constexpr int kLanes = 4;  // Batches that a GPU worker has on the device at a time.
constexpr char kKernels[] = "gemmd-gpu-fault-test-kernels";

class GpuFaultTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto listing = testing::ChildProcess::Start({testing::BinaryDirectory() + "/gemmd-worker", "--list_gpus"});
    ASSERT_TRUE(listing.ok()) << listing.status();
    const auto text = (*listing)->ReadAll(absl::Seconds(60));
    ASSERT_TRUE(text.ok()) << text.status();
    why_not_ = absl::StartsWith(*text, "GPU-") ? "" : *text;
    kernels_ = new testing::TemporaryDirectory;
  }
  static void TearDownTestSuite() { delete kernels_; }

  void SetUp() override {
    if (!why_not_.empty()) GTEST_SKIP() << why_not_;
  }

  static Fixture Start(const FaultyWorker& faulty, std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), {"--workers=gpu:0", "--kernel_cache_dir=" + kernels_->path(), faulty.Flag()});
    return StartAll({.flags = flags});
  }

  static inline std::string why_not_;
  static inline testing::TemporaryDirectory* kernels_ = nullptr;
};

const ProblemSpec kDecode{.op = Op::kDense, .m = 64, .n = 2112, .k = 7168};

TEST_F(GpuFaultTest, AnIllegalAccessCostsOneBatchAndTwoSeconds) {
  for (const Transport transport :
       {Transport::kTensor, Transport::kHost, Transport::kPool, Transport::kDevice, Transport::kDeviceIpc}) {
    // A daemon each: a worker that dies five times in a minute stays down.
    const FaultyWorker faulty;
    Fixture fixture = Start(faulty);
    const auto problem = MakeProblem(fixture.client.get(), kDecode, transport);
    faulty.Inject("illegal_access");
    const auto failed = fixture.client->Run(problem->request());
    const absl::Time start = absl::Now();
    EXPECT_TRUE(absl::IsUnavailable(failed.status())) << failed.status();
    v1::RunResponse response;
    const absl::Duration recovery = TimeToSuccess(*fixture.client, problem->request(), start, &response);
    EXPECT_LE(recovery, kAllowed);
    EXPECT_TRUE(problem->Check(response).ok()) << problem->Check(response).status();
    std::printf("illegal access, %s: %s; serving again after %s\n", std::string(Name(transport)).c_str(),
                std::string(failed.status().message()).c_str(), absl::FormatDuration(recovery).c_str());
  }
}

TEST_F(GpuFaultTest, GibibytesOfWeightsOutliveTheirWorker) {
  constexpr int64_t kN = int64_t{1} << 16, kK = int64_t{1} << 16;  // 4 GiB.
  const FaultyWorker faulty;
  Fixture fixture = Start(faulty);
  Client& client = *fixture.client;
  const auto weights = client.CreateTensor({.dtype = DType::kE4m3, .shape = {kN, kK}});
  ASSERT_TRUE(weights.ok()) << weights.status();
  // Zeros, but for ones in the last row.
  const std::vector<std::byte> ones(static_cast<size_t>(kK), static_cast<std::byte>(FloatToE4m3(1.0f)));
  ASSERT_TRUE(client.WriteTensor(weights->id(), ones, static_cast<uint64_t>((kN - 1) * kK)).ok());
  const std::vector<float> scales(static_cast<size_t>(kN / kScaleBlock * (kK / kScaleBlock)), 1.0f);
  const v1::RunRequest request = ToRequest(DenseCall{
      .a = Inline<std::byte>(ones, DType::kE4m3, {1, kK}),
      .sfa = Inline<float>(absl::MakeSpan(scales).first(kK / kScaleBlock), DType::kF32, {1, kK / kScaleBlock}),
      .b = Resident(weights->id()),
      .sfb = Inline<float>(scales, DType::kF32, {kN / kScaleBlock, kK / kScaleBlock}),
      .d = InlineResult(DType::kF32)});
  for (const pid_t pid : fixture.daemon->WorkerPids()) kill(pid, SIGKILL);
  v1::RunResponse response;
  const absl::Duration recovery = TimeToSuccess(client, request, absl::Now(), &response);
  EXPECT_LE(recovery, kAllowed);
  ASSERT_EQ(response.d().size(), static_cast<size_t>(kN) * sizeof(float));
  std::vector<float> d(static_cast<size_t>(kN));
  std::memcpy(d.data(), response.d().data(), response.d().size());
  EXPECT_EQ(d.back(), static_cast<float>(kK));
  EXPECT_EQ(std::count(d.begin(), d.end(), 0.0f), kN - 1);
  std::printf("4 GiB of weights: serving again after %s\n", absl::FormatDuration(recovery).c_str());
}

TEST_F(GpuFaultTest, WhatWaitsIsDoneByTheSuccessor) {
  const FaultyWorker faulty;
  Fixture fixture = Start(faulty, {"--merging=false"});
  const auto problem = MakeProblem(fixture.client.get(), kDecode, Transport::kTensor);
  ASSERT_TRUE(fixture.client->Run(problem->request()).ok());
  faulty.Inject("illegal_access");
  const Answers answers = RunMany(*fixture.client, problem->request(), 64);
  std::printf("illegal access under 64 requests: %d done, %d failed\n", answers.ok, answers.unavailable);
  EXPECT_EQ(answers.other, 0);
  EXPECT_GE(answers.unavailable, 1);
  EXPECT_LE(answers.unavailable, kLanes);
}

// Jobs whose group arrays the worker cannot read any more, since they are in the memory of the broken GPU.
TEST_F(GpuFaultTest, WhatArrivesMeanwhileIsDoneByTheSuccessor) {
  const FaultyWorker faulty;
  Fixture fixture = Start(faulty, {"--merging=false"});
  const ProblemSpec experts{.op = Op::kMGroupedContiguous, .m = 64, .n = 2112, .k = 7168, .groups = 4};
  const auto problem = MakeProblem(fixture.client.get(), experts, Transport::kPool);
  v1::RunRequest request = problem->request();
  // A result for each.
  ToProto(InlineResult(DType::kBf16), request.mutable_m_grouped_contiguous()->mutable_d());
  ASSERT_TRUE(fixture.client->Run(request).ok());
  faulty.Inject("illegal_access");
  const Answers answers = RunMany(*fixture.client, request, 64);
  std::printf("illegal access under 64 requests with groups in GPU memory: %d done, %d failed\n", answers.ok,
              answers.unavailable);
  EXPECT_EQ(answers.other, 0);
  EXPECT_GE(answers.unavailable, 1);
  EXPECT_LE(answers.unavailable, kLanes);
}

TEST_F(GpuFaultTest, AKernelThatHangsIsEnded) {
  const absl::Duration hang_timeout = absl::Seconds(1);
  const FaultyWorker faulty;
  Fixture fixture = Start(faulty, {absl::StrCat("--worker_hang_timeout=", absl::FormatDuration(hang_timeout))});
  const auto problem = MakeProblem(fixture.client.get(), kDecode, Transport::kTensor);
  ASSERT_TRUE(fixture.client->Run(problem->request()).ok());
  faulty.Inject("hang");
  const absl::Time start = absl::Now();
  const auto failed = fixture.client->Run(problem->request());
  EXPECT_TRUE(absl::IsUnavailable(failed.status())) << failed.status();
  const absl::Time noticed = absl::Now();
  EXPECT_LE(noticed - start, hang_timeout + kAllowed);
  v1::RunResponse response;
  const absl::Duration recovery = TimeToSuccess(*fixture.client, problem->request(), noticed, &response);
  EXPECT_LE(recovery, kAllowed);
  EXPECT_TRUE(problem->Check(response).ok()) << problem->Check(response).status();
  std::printf("hang: failed after %s, serving again %s later\n", absl::FormatDuration(noticed - start).c_str(),
              absl::FormatDuration(recovery).c_str());
}

TEST_F(GpuFaultTest, MemoryThatRunsOutIsSaidAndComesBack) {
  const FaultyWorker faulty;
  Fixture fixture = Start(faulty, {"--max_tensor_bytes_per_session=1000000000000"});
  // More than any Hopper GPU has; then as many gibibytes as fit.
  const TensorSpec huge{.dtype = DType::kE4m3, .shape = {int64_t{1} << 19, int64_t{1} << 20}};
  EXPECT_TRUE(absl::IsResourceExhausted(fixture.client->CreateTensor(huge).status()));
  const TensorSpec block{.dtype = DType::kE4m3, .shape = {int64_t{1} << 14, int64_t{1} << 20}};
  std::vector<uint64_t> blocks;
  absl::Status full;
  while (full.ok() && blocks.size() < 64) {
    const auto tensor = fixture.client->CreateTensor(block);
    full = tensor.status();
    if (tensor.ok()) blocks.push_back(tensor->id());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  ASSERT_FALSE(blocks.empty());
  for (const uint64_t id : blocks) EXPECT_TRUE(fixture.client->DeleteTensor(id).ok());
  const auto problem = MakeProblem(fixture.client.get(), kDecode, Transport::kTensor);
  const auto response = fixture.client->Run(problem->request());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(problem->Check(*response).ok());
  EXPECT_EQ(fixture.daemon->WorkerPids().size(), 1);
}

}  // namespace
}  // namespace gemmd
