// SPDX-License-Identifier: Apache-2.0
// Every operation through every transport and both paths of a real daemon, checked against the FP64 reference.
#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

struct Case {
  std::string name;
  ProblemSpec spec;
};

std::vector<Case> Cases() {
  return {
      {"Dense1D2D", {.op = Op::kDense, .m = 37, .n = 264, .k = 400}},
      {"Dense1D2DToF32", {.op = Op::kDense, .d_dtype = DType::kF32, .m = 5, .n = 132, .k = 272}},
      {"Dense1D1D", {.op = Op::kDense, .scaling = Scaling::k1D1D, .d_dtype = DType::kF32, .m = 65, .n = 136, .k = 256}},
      {"DenseBf16", {.op = Op::kDense, .scaling = Scaling::kNone, .m = 33, .n = 72, .k = 200}},
      {"DenseBf16OnFp8", {.op = Op::kDense, .bf16_a = true, .m = 21, .n = 264, .k = 400}},
      {"DenseBf16OnFp81D1D",
       {.op = Op::kDense,
        .scaling = Scaling::k1D1D,
        .d_dtype = DType::kF32,
        .bf16_a = true,
        .m = 9,
        .n = 136,
        .k = 256}},
      {"ContiguousOffsets",
       {.op = Op::kMGroupedContiguous, .m = 40, .n = 136, .k = 256, .groups = 5, .group_sizes = {0, 1, 30, 0, 9}}},
      {"ContiguousRowIndex",
       {.op = Op::kMGroupedContiguous, .encoding = GroupEncoding::kRowIndex, .m = 64, .n = 128, .k = 128, .groups = 3}},
      {"ContiguousAlignedEnds",
       {.op = Op::kMGroupedContiguous,
        .encoding = GroupEncoding::kAlignedEnds,
        .m = 300,
        .n = 128,
        .k = 128,
        .groups = 2}},
      {"Masked", {.op = Op::kMGroupedMasked, .m = 24, .n = 136, .k = 256, .groups = 4, .group_sizes = {24, 0, 1, 17}}},
      {"ContiguousBf16OnFp8",
       {.op = Op::kMGroupedContiguous,
        .bf16_a = true,
        .encoding = GroupEncoding::kRowIndex,
        .m = 64,
        .n = 128,
        .k = 272,
        .groups = 3}},
      {"MaskedBf16OnFp8",
       {.op = Op::kMGroupedMasked, .bf16_a = true, .m = 9, .n = 136, .k = 256, .groups = 3, .group_sizes = {9, 0, 4}}},
      {"ContiguousBf16",
       {.op = Op::kMGroupedContiguous,
        .scaling = Scaling::kNone,
        .m = 40,
        .n = 72,
        .k = 200,
        .groups = 4,
        .group_sizes = {11, 0, 28, 1}}},
      {"MaskedBf16ToF32",
       {.op = Op::kMGroupedMasked,
        .scaling = Scaling::kNone,
        .d_dtype = DType::kF32,
        .m = 12,
        .n = 72,
        .k = 200,
        .groups = 3,
        .group_sizes = {12, 0, 5}}},
      {"KGroupedBf16",
       {.op = Op::kKGrouped,
        .scaling = Scaling::kNone,
        .d_dtype = DType::kF32,
        .m = 24,
        .n = 40,
        .k = 200,
        .groups = 3,
        .group_sizes = {136, 0, 64}}},
      {"KGrouped",
       {.op = Op::kKGrouped,
        .scaling = Scaling::k1D1D,
        .d_dtype = DType::kF32,
        .m = 24,
        .n = 40,
        .k = 544,
        .groups = 3,
        .group_sizes = {400, 0, 144}}},
      {"Quantize1x128", {.op = Op::kQuantize, .block = QuantizeBlock::k1x128, .m = 130, .k = 336}},
      {"Quantize128x128", {.op = Op::kQuantize, .block = QuantizeBlock::k128x128, .m = 130, .k = 336}},
  };
}

class OperationsTest : public ::testing::TestWithParam<Transport> {
 protected:
  static void SetUpTestSuite() {
    auto daemon = testing::Daemon::Start();
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  static void TearDownTestSuite() {
    client_.reset();
    daemon_.reset();
  }

  absl::StatusOr<std::unique_ptr<Problem>> Make(const ProblemSpec& spec) {
    std::shared_ptr<const Weights> weights;
    if (spec.op != Op::kQuantize) {
      auto made = Weights::Create(client_.get(), spec, GetParam(), 7);
      if (!made.ok()) return made.status();
      weights = *std::move(made);
    }
    return Problem::Create(client_.get(), spec, GetParam(), weights, 11);
  }

  static inline std::unique_ptr<testing::Daemon> daemon_;
  static inline std::unique_ptr<Client> client_;
};

TEST_P(OperationsTest, UnaryResultsAreWithinTheLimits) {
  for (const Case& one : Cases()) {
    SCOPED_TRACE(one.name);
    const auto problem = Make(one.spec);
    ASSERT_TRUE(problem.ok()) << problem.status();
    ASSERT_TRUE((*problem)->ResetResult().ok());
    const auto response = client_->Run((*problem)->request());
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_TRUE((*problem)->Check(*response).ok()) << (*problem)->Check(*response).status();
  }
}

TEST_P(OperationsTest, PipelinedResultsAreWithinTheLimits) {
  std::vector<std::unique_ptr<Problem>> problems;
  for (const Case& one : Cases()) {
    auto problem = Make(one.spec);
    ASSERT_TRUE(problem.ok()) << one.name << ": " << problem.status();
    ASSERT_TRUE((*problem)->ResetResult().ok());
    problems.push_back(*std::move(problem));
  }
  std::vector<absl::StatusOr<v1::RunResponse>> responses(problems.size(), absl::UnknownError("no answer"));
  const std::unique_ptr<RunStream> stream = client_->OpenStream();
  for (size_t i = 0; i < problems.size(); ++i) {
    const absl::Status status = stream->Submit(
        problems[i]->request(), [&responses, i](absl::StatusOr<v1::RunResponse> response) { responses[i] = response; });
    ASSERT_TRUE(status.ok()) << status;
  }
  ASSERT_TRUE(stream->Close().ok());
  for (size_t i = 0; i < problems.size(); ++i) {
    ASSERT_TRUE(responses[i].ok()) << Cases()[i].name << ": " << responses[i].status();
    EXPECT_TRUE(problems[i]->Check(*responses[i]).ok())
        << Cases()[i].name << ": " << problems[i]->Check(*responses[i]).status();
  }
}

TEST_P(OperationsTest, OnlyRowsInUseCountAsFlops) {
  const std::string series =
      absl::StrCat("gemmd_flops_total{device=\"", daemon_->device(), "\",op=\"m_grouped_masked\",dtype=\"e4m3\"}");
  const ProblemSpec spec{
      .op = Op::kMGroupedMasked, .m = 24, .n = 136, .k = 256, .groups = 4, .group_sizes = {24, 0, 1, 17}};
  const auto problem = Make(spec);
  ASSERT_TRUE(problem.ok()) << problem.status();
  const auto before = daemon_->Metric(series);
  ASSERT_TRUE(before.ok()) << before.status();
  ASSERT_TRUE((*problem)->ResetResult().ok());
  ASSERT_TRUE(client_->Run((*problem)->request()).ok());
  const auto after = daemon_->Metric(series);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(*after - *before, 2.0 * (24 + 0 + 1 + 17) * 136 * 256);
}

TEST_P(OperationsTest, AccumulationAddsToWhatDHolds) {
  if (GetParam() == Transport::kInline || GetParam() == Transport::kTensor) return;  // D comes back inline.
  const ProblemSpec dense{.op = Op::kDense, .d_dtype = DType::kF32, .accumulate = true, .m = 17, .n = 128, .k = 256};
  const ProblemSpec k_grouped{.op = Op::kKGrouped,
                              .scaling = Scaling::k1D1D,
                              .d_dtype = DType::kF32,
                              .accumulate = true,
                              .m = 24,
                              .n = 40,
                              .k = 544,
                              .groups = 3,
                              .group_sizes = {400, 0, 144}};
  for (const ProblemSpec& spec : {dense, k_grouped}) {
    SCOPED_TRACE(Name(spec.op));
    const auto problem = Make(spec);
    ASSERT_TRUE(problem.ok()) << problem.status();
    ASSERT_TRUE((*problem)->ResetResult().ok());
    const auto response = client_->Run((*problem)->request());
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_TRUE((*problem)->Check(*response).ok()) << (*problem)->Check(*response).status();
  }
}

// Memory of the GPU can be shared where the workers are on one.
std::vector<Transport> TransportsHere() {
  std::vector<Transport> transports = {Transport::kInline, Transport::kHost, Transport::kSharedMemory,
                                       Transport::kTensor, Transport::kPool};
  const char* const workers = std::getenv("GEMMD_TEST_WORKERS");
  if (workers != nullptr && absl::StartsWith(workers, "gpu")) {
    transports.insert(transports.end(), {Transport::kDevice, Transport::kDeviceIpc});
  }
  return transports;
}

INSTANTIATE_TEST_SUITE_P(Transports, OperationsTest, ::testing::ValuesIn(TransportsHere()),
                         [](const auto& param_info) { return std::string(Name(param_info.param)); });

}  // namespace
}  // namespace gemmd
