// SPDX-License-Identifier: Apache-2.0
// What the metrics say, against what a client counted itself: a million requests through the whole front end but gRPC,
// to a real worker process on a device that fails now and then.
#include "server/execution.h"
#include "server/process_worker_pool.h"
#include "server/state_collector.h"
#include "tests/server/service_fixture.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/blocking_counter.h"
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kRequests = 51'200;
#else
constexpr int kRequests = 1'024'000;
#endif
constexpr int kRequestsAtATime = 512;

// A kind of request, and what each one that succeeds adds to the sums.
struct Kind {
  v1::RunRequest request = {};
  Op op = Op::kNone;
  Transport transport = Transport::kInline;
  uint64_t deadline_ns = 0;
  ProductType type = ProductType::kE4m3;
  double flops = 0;
  uint64_t useful_rows = 0;
  uint64_t padding_rows = 0;
  IoBytes io_bytes{};
  uint64_t written_bytes = 0;  // By the device: rows in use only.
};

void Set(v1::TensorRef* ref, v1::DType dtype, std::initializer_list<int64_t> shape, std::string bytes) {
  ref->set_dtype(dtype);
  for (const int64_t extent : shape) ref->add_shape(extent);
  ref->set_inline_(std::move(bytes));
}

Kind ScaledProduct() {
  Kind kind{.op = Op::kDense, .flops = 2 * 3 * 16 * 128, .useful_rows = 3, .written_bytes = 96};
  v1::Dense& dense = *kind.request.mutable_dense();
  dense.set_scaling(v1::SCALING_1D2D);
  Set(dense.mutable_a(), v1::E4M3, {3, 128}, std::string(384, '\0'));
  Set(dense.mutable_sfa(), v1::F32, {3, 1}, std::string(12, '\0'));
  Set(dense.mutable_b(), v1::E4M3, {16, 128}, std::string(2048, '\0'));
  Set(dense.mutable_sfb(), v1::F32, {1, 1}, std::string(4, '\0'));
  kind.io_bytes = {{{384 + 12 + 2048 + 4, 96}, {}, {}}};
  return kind;
}

// Jobs on one resident B may share a launch.
Kind ProductOnTensor(uint64_t tensor) {
  Kind kind{.op = Op::kDense,
            .transport = Transport::kTensor,
            .type = ProductType::kBf16,
            .flops = 2 * 2 * 8 * 16,
            .useful_rows = 2,
            .written_bytes = 32};
  v1::Dense& dense = *kind.request.mutable_dense();
  dense.set_scaling(v1::SCALING_NONE);
  Set(dense.mutable_a(), v1::BF16, {2, 16}, std::string(64, '\0'));
  dense.mutable_b()->set_tensor_id(tensor);
  kind.io_bytes = {{{64, 32}, {}, {256, 0}}};
  return kind;
}

Kind GroupedProduct() {
  Kind kind{.op = Op::kMGroupedContiguous,
            .type = ProductType::kBf16,
            .flops = 2 * 5 * 8 * 16,
            .useful_rows = 5,
            .padding_rows = 3,
            .written_bytes = 5 * 8 * 2};
  v1::MGroupedContiguous& grouped = *kind.request.mutable_m_grouped_contiguous();
  grouped.set_scaling(v1::SCALING_NONE);
  Set(grouped.mutable_a(), v1::BF16, {8, 16}, std::string(256, '\0'));
  Set(grouped.mutable_b(), v1::BF16, {2, 8, 16}, std::string(512, '\0'));
  constexpr std::array<int32_t, 8> kGroupOfRow = {0, 0, -1, -1, 1, 1, 1, -1};
  Set(grouped.mutable_row_groups()->mutable_row_index(), v1::I32, {8},
      std::string(reinterpret_cast<const char*>(kGroupOfRow.data()), sizeof(kGroupOfRow)));
  kind.io_bytes = {{{256 + 512 + 32, 8 * 8 * 2}, {}, {}}};
  return kind;
}

// The worker refuses it: A and B differ in K.
Kind IllegalProduct() {
  Kind kind{.op = Op::kDense};
  v1::Dense& dense = *kind.request.mutable_dense();
  dense.set_scaling(v1::SCALING_NONE);
  Set(dense.mutable_a(), v1::BF16, {2, 16}, std::string(64, '\0'));
  Set(dense.mutable_b(), v1::BF16, {8, 8}, std::string(128, '\0'));
  return kind;
}

Kind ProductThatIsTooLate() {
  Kind kind = ScaledProduct();
  kind.deadline_ns = 1;
  return kind;
}

class MetricTruthTest : public ::testing::Test {
 protected:
  static ProcessWorkerPoolOptions PoolOptions() {
    ProcessWorkerPoolOptions options;
    options.supervisor.worker_binary = GEMMD_WORKER_FAKE;
    options.supervisor.workers = {{"--fail_every=1000"}};
    options.devices = {"cpu"};
    return options;
  }

  void SetUp() override {
    pool_.Start();
    ASSERT_TRUE(pool_.WaitReady().ok());
    arena_ = *StagingArena::Create(16 << 20, pool_);
    builder_ = std::make_unique<JobBuilder>(Memory{*regions_, *tensors_, *arena_}, 1 << 20);
    authenticator_ = std::make_unique<Authenticator>(*sessions_);
    session_ = *sessions_->Open({.remote = false, .uid = 1}, "truth");
    const auto tensor = CreateTensor(*tensors_, session_, {.dtype = DType::kBf16, .shape = {8, 16}, .name = ""});
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    kinds_ = {ScaledProduct(), ProductOnTensor(tensor->id), GroupedProduct(), IllegalProduct(),
              Kind{},          ProductThatIsTooLate()};
  }

  void Count(size_t kind, const absl::Status& status) {
    answers_[kind][static_cast<size_t>(status.code())].fetch_add(1, std::memory_order_relaxed);
  }
  uint64_t Answers(size_t kind, absl::StatusCode code) const { return answers_[kind][static_cast<size_t>(code)]; }

  // Sums a field over the kinds, times the requests of each that succeeded.
  template <typename Value>
  double SumOfSuccesses(Value value) const {
    double sum = 0;
    for (size_t i = 0; i < kinds_.size(); ++i) {
      sum += static_cast<double>(Answers(i, absl::StatusCode::kOk)) * static_cast<double>(value(kinds_[i]));
    }
    return sum;
  }

  // Sends some requests at once and waits for all answers.
  void Run(int first, int count) {
    const GemmParts parts{pool_, *authenticator_, *builder_, gate_, metrics_, requests_};
    std::vector<std::unique_ptr<Execution>> executions;
    std::vector<v1::RunResponse> responses(static_cast<size_t>(count));
    absl::BlockingCounter unanswered(count);
    for (int i = 0; i < count; ++i) {
      executions.push_back(std::make_unique<Execution>(parts, Submission::kLeave, ""));
      Execution& execution = *executions.back();
      const size_t kind = static_cast<size_t>(first + i) % kinds_.size();
      v1::RunResponse& response = responses[static_cast<size_t>(i)];
      const auto answer = [&, kind](const absl::Status& status) {
        execution.Answer(status);
        Count(kind, status);
        unanswered.DecrementCount();
      };
      const absl::Status status =
          execution.Start(kinds_[kind].request, session_, kinds_[kind].deadline_ns,
                          [&execution, &response, answer](const absl::Status& result, const JobCompletion& completion) {
                            answer(execution.Complete(result, completion, response));
                          });
      if (!status.ok()) answer(status);
    }
    unanswered.Wait();
  }

  // Every series of the page.
  std::map<std::string, double> Scrape() const {
    const StateCollector states({pool_, *regions_, *tensors_, *sessions_, *arena_});
    const prometheus::TextSerializer text;
    const std::string page =
        absl::StrCat(text.Serialize(metrics_.registry()->Collect()), text.Serialize(states.Collect()));
    std::map<std::string, double> series;
    for (const absl::string_view line : absl::StrSplit(page, '\n', absl::SkipEmpty())) {
      if (line[0] == '#') continue;
      const size_t space = line.rfind(' ');
      EXPECT_TRUE(absl::SimpleAtod(line.substr(space + 1), &series[std::string(line.substr(0, space))])) << line;
    }
    return series;
  }

  const Quotas quotas_{.jobs_per_session = 2 * kRequestsAtATime};
  ProcessWorkerPool pool_{PoolOptions(), [] {}};
  std::shared_ptr<RegionRegistry> regions_ = RegionRegistry::Create(quotas_, pool_);
  std::shared_ptr<TensorRegistry> tensors_ = TensorRegistry::Create(quotas_, pool_);
  std::unique_ptr<SessionRegistry> sessions_ = std::make_unique<SessionRegistry>(quotas_, regions_, tensors_);
  std::unique_ptr<StagingArena> arena_;
  std::unique_ptr<Authenticator> authenticator_;
  std::unique_ptr<JobBuilder> builder_;
  DrainGate gate_;
  Metrics metrics_{"test"};
  RequestLog requests_{4096, [] {}};  // As a daemon remembers.
  std::shared_ptr<Session> session_;
  std::vector<Kind> kinds_;
  std::array<std::array<std::atomic<uint64_t>, kStatusCodeCount>, 6> answers_{};
};

TEST_F(MetricTruthTest, CountersEqualTheClientsSumsExactly) {
  for (int first = 0; first < kRequests; first += kRequestsAtATime) Run(first, kRequestsAtATime);
  std::map<std::string, double> page = Scrape();

  // By label, for kinds that share one.
  std::map<std::string, double> expected;
  for (size_t i = 0; i < kinds_.size(); ++i) {
    const Kind& kind = kinds_[i];
    const std::string op_and_transport =
        absl::StrCat("op=\"", Name(kind.op), "\",transport=\"", Name(kind.transport), "\"}");
    for (size_t code = 0; code < kStatusCodeCount; ++code) {
      const auto status = static_cast<absl::StatusCode>(code);
      const auto count = static_cast<double>(Answers(i, status));
      expected[absl::StrCat("gemmd_requests_total{code=\"", Name(status), "\",", op_and_transport)] += count;
      expected[absl::StrCat("gemmd_request_duration_seconds_count{", op_and_transport)] += count;
    }
  }
  double all = 0;
  for (const auto& [series, value] : page) {
    if (series.rfind("gemmd_requests_total{", 0) != 0) continue;
    all += value;
    EXPECT_EQ(value, expected.count(series) > 0 ? expected[series] : 0) << series;
  }
  EXPECT_EQ(all, kRequests);
  for (const auto& [series, value] : expected) EXPECT_EQ(page.at(series), value) << series;

  const auto ok = [&](size_t kind) { return static_cast<double>(Answers(kind, absl::StatusCode::kOk)); };
  EXPECT_GT(ok(0), 0);
  EXPECT_GT(ok(1), 0);
  EXPECT_GT(ok(2), 0);
  const auto failed = [&](size_t kind) { return static_cast<double>(Answers(kind, absl::StatusCode::kInternal)); };
  const double failures = failed(0) + failed(1) + failed(2);
  EXPECT_GT(failures, 0);
  const double executed = ok(0) + ok(1) + ok(2);
  for (const char* stage : {"decode", "queue", "device", "reply"}) {
    EXPECT_EQ(page.at(absl::StrCat("gemmd_stage_duration_seconds_count{stage=\"", stage, "\"}")), executed);
  }

  const auto flops = [&](Op op, ProductType type) {
    return SumOfSuccesses([=](const Kind& kind) { return kind.op == op && kind.type == type ? kind.flops : 0; });
  };
  for (const Op op : {Op::kDense, Op::kMGroupedContiguous, Op::kMGroupedMasked, Op::kKGrouped}) {
    for (const ProductType type : {ProductType::kE4m3, ProductType::kBf16}) {
      EXPECT_EQ(
          page.at(absl::StrCat("gemmd_flops_total{device=\"cpu\",op=\"", Name(op), "\",dtype=\"", Name(type), "\"}")),
          flops(op, type));
    }
  }
  EXPECT_EQ(page.at("gemmd_rows_total{device=\"cpu\",kind=\"useful\"}"),
            SumOfSuccesses([](const Kind& kind) { return kind.useful_rows; }));
  EXPECT_EQ(page.at("gemmd_rows_total{device=\"cpu\",kind=\"padding\"}"),
            SumOfSuccesses([](const Kind& kind) { return kind.padding_rows; }));
  EXPECT_EQ(page.at("gemmd_operand_bytes_total{device=\"cpu\",direction=\"out\"}"),
            SumOfSuccesses([](const Kind& kind) { return kind.written_bytes; }));
  for (const Transport transport : {Transport::kInline, Transport::kHost, Transport::kTensor}) {
    for (const Direction direction : {Direction::kIn, Direction::kOut}) {
      EXPECT_EQ(page.at(absl::StrCat("gemmd_io_bytes_total{direction=\"", Name(direction), "\",transport=\"",
                                     Name(transport), "\"}")),
                SumOfSuccesses([=](const Kind& kind) {
                  return kind.io_bytes[static_cast<size_t>(transport)][static_cast<size_t>(direction)];
                }));
    }
  }

  // Jobs that the device failed were in a batch all the same.
  EXPECT_EQ(page.at("gemmd_batch_requests_sum{device=\"cpu\"}"), executed + failures);
  double closed = 0;
  double launched = 0;
  for (const auto& [series, value] : page) {
    if (series.rfind("gemmd_batch_closed_total{", 0) == 0) closed += value;
    if (series.rfind("gemmd_batch_duration_seconds_count{", 0) == 0) launched += value;
  }
  EXPECT_EQ(closed, page.at("gemmd_batch_requests_count{device=\"cpu\"}"));
  EXPECT_EQ(launched, closed);
  EXPECT_LE(closed, executed + failures);

  const auto too_late = static_cast<double>(Answers(5, absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(page.at("gemmd_rejected_total{reason=\"deadline\"}"), too_late);
  EXPECT_EQ(page.at("gemmd_deadline_missed_total{where=\"arrival\"}"), too_late);
  EXPECT_EQ(page.at("gemmd_inflight_requests"), 0);
  EXPECT_EQ(page.at("gemmd_worker_inflight_requests{device=\"cpu\"}"), 0);
}

}  // namespace
}  // namespace gemmd
