// SPDX-License-Identifier: Apache-2.0
// What the service adds to the work itself. Three measurements, each against its baseline in the same run, interleaved:
//
//   overhead  p50 of a tiny product by unary gRPC on the Unix socket, against a bare gRPC callback server that answers
//             with a response of the same size (gemmd-echo-server);
//   host      a product with 64 MiB of operands in `host` regions through the daemon, against the same call to the
//             device inside one process.
//
//   scraping  p50, p99 and p99.9 of the same tiny product while the metrics page is read a hundred times a second,
//             against a quiet page, in turn.
//
// Prints one JSON document. Usage: gemmd-service-bench [--rounds=N] [--only=overhead,host,scraping].
#include "client/client.h"
#include "client/random_data.h"
#include "gemmd/v1/gemm.grpc.pb.h"
#include "gpu/cpu/cpu_device.h"
#include "gpu/job_check.h"
#include "proto/lock_checks.h"
#include "tests/bench/measure.h"
#include "tests/e2e/process.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sched.h>
#include <string>
#include <thread>
#include <vector>

ABSL_FLAG(int, rounds, 20, "Interleaved rounds; each has 200 calls of either side in `overhead` and one in `host`.");

ABSL_FLAG(std::vector<std::string>, only, std::vector<std::string>({"overhead", "host", "scraping"}),
          "Which measurements to make.");

namespace gemmd {
namespace {

constexpr int kCallsPerRound = 200;

// A product of 8 x 16 x 128 with everything inline: 3 KiB in, 256 bytes out.
v1::RunRequest TinyRequest() {
  constexpr int64_t kM = 8;
  constexpr int64_t kN = 16;
  constexpr int64_t kK = 128;
  v1::RunRequest request;
  v1::Dense* dense = request.mutable_dense();
  dense->set_scaling(v1::SCALING_1D2D);
  const auto set = [](v1::TensorRef* ref, v1::DType dtype, int64_t rows, int64_t columns, std::string bytes) {
    ref->set_inline_(std::move(bytes));
    ref->set_dtype(dtype);
    ref->add_shape(rows);
    ref->add_shape(columns);
  };
  const auto ones = [](int64_t count) {
    const std::vector<float> values(static_cast<size_t>(count), 1.0f);
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  };
  set(dense->mutable_a(), v1::E4M3, kM, kK, std::string(kM * kK, '\x38'));
  set(dense->mutable_sfa(), v1::F32, kM, 1, ones(kM));
  set(dense->mutable_b(), v1::E4M3, kN, kK, std::string(kN * kK, '\x38'));
  set(dense->mutable_sfb(), v1::F32, 1, 1, ones(1));
  dense->mutable_d()->set_dtype(v1::BF16);
  return request;
}

// p50 of `kCallsPerRound` calls in microseconds.
double RoundP50(v1::Gemm::Stub& stub, const v1::RunRequest& request, v1::RunResponse& response,
                Stages* stages = nullptr) {
  std::vector<double> microseconds;
  microseconds.reserve(kCallsPerRound);
  for (int call = 0; call < kCallsPerRound; ++call) {
    grpc::ClientContext context;
    grpc::Status status;
    microseconds.push_back(MicrosecondsOf([&] { status = stub.Run(&context, request, &response); }));
    if (!status.ok()) {
      std::fprintf(stderr, "Run: %s\n", status.error_message().c_str());
      std::exit(1);
    }
    if (stages != nullptr) AddStages(response.times(), *stages);
  }
  return Median(std::move(microseconds));
}

Json MeasureOverhead(const testing::Daemon& daemon, int rounds) {
  const v1::RunRequest request = TinyRequest();
  v1::RunResponse response;
  const auto product_stub =
      v1::Gemm::NewStub(grpc::CreateChannel(daemon.address(), grpc::InsecureChannelCredentials()));
  RoundP50(*product_stub, request, response);

  const testing::TemporaryDirectory directory;
  const std::string socket = directory.path() + "/echo.sock";
  const auto echo = ValueOrDie(testing::ChildProcess::Start({testing::BinaryDirectory() + "/gemmd-echo-server", socket,
                                                             absl::StrCat(response.d().size())}),
                               "echo server");
  ValueOrDie(echo->ReadLine(absl::Seconds(10)), "echo server");
  const auto echo_stub = v1::Gemm::NewStub(grpc::CreateChannel("unix:" + socket, grpc::InsecureChannelCredentials()));
  RoundP50(*echo_stub, request, response);

  std::vector<double> product;
  std::vector<double> baseline;
  std::vector<double> ratios;
  Stages stages;
  for (int round = 0; round < rounds; ++round) {
    baseline.push_back(RoundP50(*echo_stub, request, response));
    product.push_back(RoundP50(*product_stub, request, response, &stages));
    ratios.push_back(product.back() / baseline.back());
  }
  return Json{{"shape", "8x16x128"},     {"request_bytes", request.ByteSizeLong()}, {"calls_per_round", kCallsPerRound},
              {"rounds", rounds},        {"product_p50_us", Median(product)},       {"echo_p50_us", Median(baseline)},
              {"ratio", Median(ratios)}, {"stages_p50_us", Medians(stages)}};
}

constexpr absl::Duration kScrapeInterval = absl::Milliseconds(10);
constexpr int kScrapingCallsPerRound = 5000;

// Reads the metrics page every 10 ms until Stop.
class Scraper {
 public:
  explicit Scraper(const testing::Daemon& daemon) : daemon_(daemon), thread_([this] { Run(); }) {}
  ~Scraper() { Stop(); }

  // Once it has returned, what was measured may be read.
  void Stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }
  const std::vector<double>& milliseconds() const { return milliseconds_; }
  size_t page_bytes() const { return page_bytes_; }

 private:
  void Run() {
    // Stands for a Prometheus on another machine: only what the daemon does for it may disturb.
    const sched_param none{};
    sched_setscheduler(0, SCHED_IDLE, &none);
    absl::Time next = absl::Now();
    while (!stopping_) {
      const absl::Time start = absl::Now();
      page_bytes_ = ValueOrDie(daemon_.Metrics(), "scrape").size();
      milliseconds_.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
      next = std::max(next + kScrapeInterval, absl::Now());
      absl::SleepFor(next - absl::Now());
    }
  }

  const testing::Daemon& daemon_;
  std::atomic<bool> stopping_{false};
  std::vector<double> milliseconds_;
  size_t page_bytes_ = 0;
  std::thread thread_;
};

// Microseconds of calls one after another.
std::vector<double> Latencies(v1::Gemm::Stub& stub, const v1::RunRequest& request, int calls) {
  v1::RunResponse response;
  std::vector<double> microseconds;
  for (int call = 0; call < calls; ++call) {
    grpc::ClientContext context;
    grpc::Status status;
    microseconds.push_back(MicrosecondsOf([&] { status = stub.Run(&context, request, &response); }));
    if (!status.ok()) {
      std::fprintf(stderr, "Run: %s\n", status.error_message().c_str());
      std::exit(1);
    }
  }
  return microseconds;
}

Json Quantiles(std::vector<double> values) {
  return Json{
      {"p50_us", Quantile(values, 0.5)}, {"p99_us", Quantile(values, 0.99)}, {"p99.9_us", Quantile(values, 0.999)}};
}

Json MeasureScraping(const testing::Daemon& daemon, int rounds) {
  const v1::RunRequest request = TinyRequest();
  const auto stub = v1::Gemm::NewStub(grpc::CreateChannel(daemon.address(), grpc::InsecureChannelCredentials()));
  Latencies(*stub, request, kScrapingCallsPerRound);
  std::vector<double> quiet;
  std::vector<double> scraped;
  std::vector<double> p99_ratios;
  size_t scrapes = 0;
  size_t page_bytes = 0;
  std::vector<double> scrape_ms;
  for (int round = 0; round < rounds; ++round) {
    std::vector<double> alone = Latencies(*stub, request, kScrapingCallsPerRound);
    std::vector<double> beside;
    {
      Scraper scraper(daemon);
      beside = Latencies(*stub, request, kScrapingCallsPerRound);
      scraper.Stop();
      scrapes += scraper.milliseconds().size();
      page_bytes = scraper.page_bytes();
      scrape_ms.insert(scrape_ms.end(), scraper.milliseconds().begin(), scraper.milliseconds().end());
    }
    p99_ratios.push_back(Quantile(beside, 0.99) / Quantile(alone, 0.99));
    quiet.insert(quiet.end(), alone.begin(), alone.end());
    scraped.insert(scraped.end(), beside.begin(), beside.end());
  }
  return Json{{"shape", "8x16x128"},
              {"calls_per_round", kScrapingCallsPerRound},
              {"rounds", rounds},
              {"scrapes", scrapes},
              {"page_bytes", page_bytes},
              {"scrape_p50_ms", Median(scrape_ms)},
              {"quiet", Quantiles(std::move(quiet))},
              {"scraped", Quantiles(std::move(scraped))},
              {"p99_ratio", Median(p99_ratios)}};
}

// 1024 x 7168 x 8192: 8 MiB of A and 56 MiB of B.
constexpr int64_t kHostM = 1024;
constexpr int64_t kHostN = 7168;
constexpr int64_t kHostK = 8192;

struct HostLayout {
  uint64_t a = 0;
  uint64_t sfa = a + kHostM * kHostK;
  uint64_t b = sfa + kHostM * (kHostK / 128) * sizeof(float);
  uint64_t sfb = b + kHostN * kHostK;
  uint64_t d = sfb + (kHostN / 128) * (kHostK / 128) * sizeof(float);
  uint64_t end = d + kHostM * kHostN * sizeof(uint16_t);
};

// The same product as a descriptor, for the device in this process.
JobDescriptor HostDescriptor(const HostLayout& layout) {
  JobDescriptor job;
  job.op = Op::kDense;
  job.scaling = Scaling::k1D2D;
  const auto set = [&](OperandIndex index, uint64_t offset, DType dtype, int64_t rows, int64_t columns) {
    job.operand(index) = {
        .region = 1, .offset = offset, .shape = {rows, columns}, .strides = {columns, 1}, .dtype = dtype, .rank = 2};
  };
  set(OperandIndex::kA, layout.a, DType::kE4m3, kHostM, kHostK);
  set(OperandIndex::kSfa, layout.sfa, DType::kF32, kHostM, kHostK / 128);
  set(OperandIndex::kB, layout.b, DType::kE4m3, kHostN, kHostK);
  set(OperandIndex::kSfb, layout.sfb, DType::kF32, kHostN / 128, kHostK / 128);
  set(OperandIndex::kD, layout.d, DType::kBf16, kHostM, kHostN);
  return job;
}

void RunOnDevice(Device& device, const std::shared_ptr<DeviceMemory>& memory, const HostLayout& layout) {
  auto checked = CheckJob(HostDescriptor(layout), [&](uint64_t) {
    return RegionHit{.rule = Rule::kNone, .access = Access::kReadWrite, .memory = memory};
  });
  Job job;
  job.gemm = std::get<Gemm>(std::move(checked));
  Batch batch;
  batch.jobs.push_back(std::move(job));
  device.Submit(std::move(batch), [](const Batch&, const BatchResult& result) {
    if (result.reasons[0].rule != Rule::kNone) std::abort();
  });
  device.Wait();
}

Json MeasureHost(const testing::Daemon& daemon, int rounds) {
  const HostLayout layout;
  const auto client = ValueOrDie(Client::Connect(daemon.address()), "connect");
  const HostRegion region = ValueOrDie(client->CreateHostRegion(layout.end), "region");
  FillRandomQuantized(1, kHostM, kHostK, QuantizeBlock::k1x128, region.Elements<uint8_t>(layout.a, kHostM * kHostK),
                      region.Elements<float>(layout.sfa, kHostM * (kHostK / 128)));
  FillRandomQuantized(2, kHostN, kHostK, QuantizeBlock::k128x128, region.Elements<uint8_t>(layout.b, kHostN * kHostK),
                      region.Elements<float>(layout.sfb, (kHostN / 128) * (kHostK / 128)));
  const DenseCall call{.a = region.View(layout.a, DType::kE4m3, {kHostM, kHostK}),
                       .sfa = region.View(layout.sfa, DType::kF32, {kHostM, kHostK / 128}),
                       .b = region.View(layout.b, DType::kE4m3, {kHostN, kHostK}),
                       .sfb = region.View(layout.sfb, DType::kF32, {kHostN / 128, kHostK / 128}),
                       .d = region.View(layout.d, DType::kBf16, {kHostM, kHostN})};

  const auto device = ValueOrDie(CpuDevice::Open({}), "device");
  UniqueFd own = ValueOrDie(CreateSealedMemory(layout.end), "memory");
  const SharedMapping mapping = ValueOrDie(SharedMapping::Map(own.get(), layout.end, Access::kReadWrite), "mapping");
  std::copy(region.data(), region.data() + layout.end, mapping.data());
  const auto memory = ValueOrDie(
      device->Map({.kind = RegionKind::kHost, .access = Access::kReadWrite, .byte_size = layout.end}, std::move(own)),
      "map");

  const auto through_daemon = [&] { ValueOrDie(client->Dense(call), "Dense"); };
  const auto in_process = [&] { RunOnDevice(*device, memory, layout); };
  through_daemon();
  in_process();
  std::vector<double> daemon_us;
  std::vector<double> device_us;
  std::vector<double> ratios;
  for (int round = 0; round < rounds; ++round) {
    device_us.push_back(MicrosecondsOf(in_process));
    daemon_us.push_back(MicrosecondsOf(through_daemon));
    ratios.push_back(daemon_us.back() / device_us.back());
  }
  return Json{{"shape", absl::StrCat(kHostM, "x", kHostN, "x", kHostK)},
              {"operand_bytes", kHostM * kHostK + kHostN * kHostK},
              {"rounds", rounds},
              {"daemon_ms", Median(daemon_us) / 1000},
              {"in_process_ms", Median(device_us) / 1000},
              {"ratio", Median(ratios)}};
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  gemmd::DropLockOrderChecks();
  absl::ParseCommandLine(argc, argv);
  const int rounds = absl::GetFlag(FLAGS_rounds);
  const auto daemon = gemmd::ValueOrDie(gemmd::testing::Daemon::Start(), "gemmd");
  gemmd::Json document{{"benchmark", "service"}, {"cores", std::thread::hardware_concurrency()}};
  const std::vector<std::string> only = absl::GetFlag(FLAGS_only);
  const auto wanted = [&](const char* name) { return std::find(only.begin(), only.end(), name) != only.end(); };
  if (wanted("overhead")) document["overhead"] = gemmd::MeasureOverhead(*daemon, rounds);
  if (wanted("host")) document["host"] = gemmd::MeasureHost(*daemon, std::max(3, rounds / 2));
  if (wanted("scraping")) document["scraping"] = gemmd::MeasureScraping(*daemon, std::max(3, rounds / 2));
  std::printf("%s\n", document.dump(2).c_str());
  return 0;
}
