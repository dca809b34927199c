// SPDX-License-Identifier: Apache-2.0
#include "tests/fault/gpu_memory_fixture.h"

#include "proto/broker.h"
#include "tests/gpu/fake_cuda.h"

#include "absl/strings/match.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
#include <utility>

namespace gemmd::testing {
namespace {

constexpr std::byte kOne{0x38};     // 1.0 in E4M3.
constexpr std::byte kFilled{0x42};  // What the fake worker fills results with.

bool HoldsNoMore(const Holdings& now, const Holdings& before) {
  const auto none_more = [](const std::vector<int>& more, const std::vector<int>& less) {
    return std::equal(more.begin(), more.end(), less.begin(), less.end(), std::less_equal<>());
  };
  return now.daemon_descriptors <= before.daemon_descriptors && now.own_descriptors <= before.own_descriptors &&
         none_more(now.worker_descriptors, before.worker_descriptors) &&
         none_more(now.worker_mappings, before.worker_mappings);
}

}  // namespace

bool OnRealGpu() {
  const char* const workers = std::getenv("GEMMD_TEST_WORKERS");
  return workers != nullptr && absl::StartsWith(workers, "gpu");
}

DenseCall ProductOfOnes::Call(const DeviceRegion& operands, const DeviceRegion& result) const {
  return {.a = operands.View(0, DType::kE4m3, {m, k}),
          .sfa = operands.View(sfa(), DType::kF32, {m, k / 128}),
          .b = operands.View(b(), DType::kE4m3, {n, k}),
          .sfb = operands.View(sfb(), DType::kF32, {(n + 127) / 128, k / 128}),
          .d = result.View(d(), DType::kF32, {m, n})};
}

absl::Status ProductOfOnes::WriteOperands(const DeviceRegion& region) const {
  std::vector<std::byte> bytes(byte_size());
  std::fill_n(bytes.begin(), sfa(), kOne);
  const std::vector<float> scales((d() - sfa()) / sizeof(float), 1.0F);
  std::memcpy(bytes.data() + sfa(), scales.data(), scales.size() * sizeof(float));
  return region.Write(0, bytes);
}

bool ProductOfOnes::IsIn(const DeviceRegion& region) const {
  std::vector<std::byte> found(d_bytes());
  if (!region.Read(d(), absl::MakeSpan(found)).ok()) return false;
  std::vector<float> expected(d_bytes() / sizeof(float), static_cast<float>(k));
  if (!OnRealGpu()) std::memset(expected.data(), static_cast<int>(kFilled), d_bytes());
  return std::memcmp(found.data(), expected.data(), d_bytes()) == 0;
}

TemporaryDirectory* GpuMemoryFixture::folder_ = nullptr;
Daemon* GpuMemoryFixture::daemon_ = nullptr;

void GpuMemoryFixture::StartDaemon(const std::vector<std::string>& fake_worker_flags) {
  folder_ = new TemporaryDirectory;
  DaemonOptions options{.flags = {"--spin_us=300"}};
  if (!OnRealGpu()) {
    std::vector<std::string> flags = {"--fill=66"};
    flags.insert(flags.end(), fake_worker_flags.begin(), fake_worker_flags.end());
    options.flags.push_back("--workers=gpu");
    options.flags.push_back("--worker_binary=" + WorkerWithFlags(*folder_, "gemmd-worker-fake", flags));
  }
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = daemon->release();
}

void GpuMemoryFixture::StopDaemon() {
  delete std::exchange(daemon_, nullptr);
  delete std::exchange(folder_, nullptr);
}

void GpuMemoryFixture::SetUp() {
  ASSERT_NE(daemon_, nullptr);
  auto client = Client::Connect(daemon_->address());
  ASSERT_TRUE(client.ok()) << client.status();
  client_ = *std::move(client);
  std::vector<std::string> uuids = {daemon_->device()};
  if (!OnRealGpu()) uuids.assign(std::begin(kFakeGpus), std::end(kFakeGpus));
  for (const std::string& uuid : uuids) {
    auto gpu = Gpu::Open(uuid);
    ASSERT_TRUE(gpu.ok()) << gpu.status();
    gpus_.push_back(*std::move(gpu));
  }
}

void GpuMemoryFixture::ExpectProduct(const DeviceRegion& region) {
  ASSERT_TRUE(kSmall.WriteOperands(region).ok());
  std::vector<std::byte> before(kSmall.d());
  ASSERT_TRUE(region.Read(0, absl::MakeSpan(before)).ok());
  const auto response = client_->Dense(kSmall.Call(region, region));
  ASSERT_TRUE(response.ok()) << response.status();
  std::vector<std::byte> after(before.size());
  ASSERT_TRUE(region.Read(0, absl::MakeSpan(after)).ok());
  EXPECT_EQ(before, after);
  EXPECT_TRUE(kSmall.IsIn(region));
}

std::shared_ptr<ClientSession> GpuMemoryFixture::Broker() const {
  auto session = ClientSession::OpenAtBroker(daemon_->socket_path() + kBrokerSuffix, {});
  EXPECT_TRUE(session.ok()) << session.status();
  return session.ok() ? *std::move(session) : nullptr;
}

Holdings HoldingsOf(const Daemon& daemon) {
  Holdings holdings{.daemon_descriptors = daemon.OpenDescriptors(), .own_descriptors = OpenDescriptors(getpid())};
  for (const pid_t pid : daemon.WorkerPids()) {
    holdings.worker_descriptors.push_back(OpenDescriptors(pid));
    holdings.worker_mappings.push_back(SharedMappings(pid));
  }
  return holdings;
}

void ExpectNoMoreThan(const Holdings& before, const Daemon& daemon) {
  if (WaitUntil(absl::Seconds(10), [&] { return HoldsNoMore(HoldingsOf(daemon), before); })) return;
  const Holdings now = HoldingsOf(daemon);
  EXPECT_LE(now.daemon_descriptors, before.daemon_descriptors);
  EXPECT_LE(now.own_descriptors, before.own_descriptors);
  EXPECT_EQ(now.worker_descriptors, before.worker_descriptors);
  EXPECT_EQ(now.worker_mappings, before.worker_mappings);
}

}  // namespace gemmd::testing
