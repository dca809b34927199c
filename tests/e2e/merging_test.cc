// SPDX-License-Identifier: Apache-2.0
// Requests that wait for a busy device together: those on the same weights share a launch, or none does with
// --merging=false, and what comes back is the same.
#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

struct Kind {
  const char* name;
  ProblemSpec spec;
};

std::vector<Kind> Kinds() {
  const ProblemSpec dense{.d_dtype = DType::kF32, .m = 3, .n = 264, .k = 400};
  ProblemSpec w8a16 = dense;
  w8a16.bf16_a = true;
  return {
      {"dense", dense},
      {"bf16 on fp8", w8a16},
      {"contiguous",
       {.op = Op::kMGroupedContiguous, .m = 20, .n = 136, .k = 256, .groups = 4, .group_sizes = {7, 0, 12, 1}}},
      {"masked", {.op = Op::kMGroupedMasked, .m = 8, .n = 136, .k = 256, .groups = 4, .group_sizes = {8, 0, 1, 5}}}};
}

constexpr int kJobs = 5;         // Of each kind.
constexpr int64_t kLong = 4096;  // 137 GFLOP: about a second on two cores, 0.1 s on thirty.

// What a daemon answered: by kind, then by job.
struct Outcome {
  uint32_t batch_jobs_of_first = 0;
  std::vector<std::vector<v1::RunResponse>> responses;
};

class MergingTest : public ::testing::Test {
 protected:
  // Keeps the device of a fresh daemon busy, lets kJobs of every kind wait meanwhile, and checks each result.
  void Run(const std::string& flag, Outcome* outcome) {
    const auto daemon = testing::Daemon::Start({.flags = {flag}});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    if ((*daemon)->device() != "cpu") GTEST_SKIP() << "no single product keeps a GPU busy for long enough";
    const auto client = Client::Connect((*daemon)->address());
    ASSERT_TRUE(client.ok()) << client.status();
    std::vector<std::vector<std::unique_ptr<Problem>>> problems;
    for (const Kind& kind : Kinds()) {
      const auto weights = Weights::Create(client->get(), kind.spec, Transport::kTensor, 7);
      ASSERT_TRUE(weights.ok()) << weights.status();
      problems.emplace_back();
      for (int job = 0; job < kJobs; ++job) {
        auto problem =
            Problem::Create(client->get(), kind.spec, Transport::kTensor, *weights, static_cast<uint64_t>(11 + job));
        ASSERT_TRUE(problem.ok()) << problem.status();
        problems.back().push_back(*std::move(problem));
      }
    }
    const auto region = (*client)->CreateHostRegion(2 * kLong * kLong * sizeof(uint16_t));
    ASSERT_TRUE(region.ok()) << region.status();
    SubmitAll(**client, *region, problems, outcome);
    for (size_t kind = 0; kind < problems.size(); ++kind) {
      for (size_t job = 0; job < kJobs; ++job) {
        const auto error = problems[kind][job]->Check(outcome->responses[kind][job]);
        EXPECT_TRUE(error.ok()) << Kinds()[kind].name << ": " << error.status();
      }
    }
  }

 private:
  static void SubmitAll(Client& client, const HostRegion& region,
                        const std::vector<std::vector<std::unique_ptr<Problem>>>& problems, Outcome* outcome) {
    const TensorView matrix = region.View(0, DType::kBf16, {kLong, kLong});
    const TensorView product = region.View(kLong * kLong * sizeof(uint16_t), DType::kBf16, {kLong, kLong});
    const std::unique_ptr<RunStream> stream = client.OpenStream();
    const auto submit = [&](const v1::RunRequest& request, v1::RunResponse* into) {
      const absl::Status sent = stream->Submit(request, [into](const absl::StatusOr<v1::RunResponse>& response) {
        EXPECT_TRUE(response.ok()) << response.status();
        if (response.ok()) *into = *response;
      });
      ASSERT_TRUE(sent.ok()) << sent;
    };
    v1::RunResponse first;
    submit(ToRequest(DenseCall{.scaling = Scaling::kNone, .a = matrix, .b = matrix, .d = product}), &first);
    outcome->responses.assign(problems.size(), std::vector<v1::RunResponse>(kJobs));
    for (size_t kind = 0; kind < problems.size(); ++kind) {
      for (size_t job = 0; job < kJobs; ++job) {
        submit(problems[kind][job]->request(), &outcome->responses[kind][job]);
      }
    }
    ASSERT_TRUE(stream->Close().ok());
    outcome->batch_jobs_of_first = first.batch_jobs();
  }
};

std::vector<float> Floats(const std::string& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(ByteSize(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&values[i], bytes.data() + i * sizeof(float), sizeof(float));
    } else {
      uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + i * sizeof(bits), sizeof(bits));
      values[i] = Bf16ToFloat(bits);
    }
  }
  return values;
}

// Equal to the rounding of FP32 sums, which may fall to the other side of a boundary between two BF16 numbers: a BLAS
// adds up in another order for another number of rows.
void ExpectEqual(const std::string& left, const std::string& right, DType dtype) {
  const std::vector<float> a = Floats(left, dtype);
  const std::vector<float> b = Floats(right, dtype);
  ASSERT_EQ(a.size(), b.size());
  double squares = 0;
  for (const float value : a) squares += double{value} * value;
  const double rms = std::sqrt(squares / static_cast<double>(a.size()));
  const double step = dtype == DType::kBf16 ? 0x1p-7 : 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(a[i], b[i], 1e-5 * rms + step * std::abs(a[i])) << "element " << i;
  }
}

TEST_F(MergingTest, JobsThatWaitOnTheSameWeightsShareALaunchAndGiveTheSame) {
  Outcome merged;
  Outcome alone;
  Run("--merging=true", &merged);
  if (HasFatalFailure() || IsSkipped()) return;
  Run("--merging=false", &alone);
  if (HasFatalFailure()) return;
  EXPECT_EQ(merged.batch_jobs_of_first, 1u);
  for (size_t kind = 0; kind < merged.responses.size(); ++kind) {
    SCOPED_TRACE(Kinds()[kind].name);
    uint32_t most = 0;
    for (size_t job = 0; job < kJobs; ++job) {
      most = std::max(most, merged.responses[kind][job].batch_jobs());
      EXPECT_EQ(alone.responses[kind][job].batch_jobs(), 1u);
      ExpectEqual(merged.responses[kind][job].d(), alone.responses[kind][job].d(), Kinds()[kind].spec.d_dtype);
    }
    // The first may have gone to the device by itself, behind the long product.
    EXPECT_GE(most, kJobs - 1u);
  }
}

}  // namespace
}  // namespace gemmd
