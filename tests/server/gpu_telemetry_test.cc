// SPDX-License-Identifier: Apache-2.0
// Telemetry from a libnvidia-ml.so of the tests (fake_nvml.cc).
#include "server/gpu_telemetry.h"

#include "tests/server/service_fixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <dlfcn.h>
#include <memory>
#include <string>

namespace gemmd {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Page(const GpuTelemetry& telemetry) { return prometheus::TextSerializer().Serialize(telemetry.Collect()); }

// The library itself, to script it.
class FakeNvml {
 public:
  FakeNvml() : handle_(dlopen(GEMMD_FAKE_NVML, RTLD_NOW)) {}
  ~FakeNvml() { dlclose(handle_); }
  void LoseGpu(bool lost) { reinterpret_cast<void (*)(bool)>(dlsym(handle_, "FakeNvmlLoseGpu"))(lost); }
  int users() { return reinterpret_cast<int (*)()>(dlsym(handle_, "FakeNvmlUsers"))(); }

 private:
  void* const handle_;
};

TEST(GpuTelemetryTest, EveryQuantityIsThereInBaseUnitsFromTheStart) {
  const auto telemetry = GpuTelemetry::Start({"GPU-fake", "cpu", "GPU-fake"}, GEMMD_FAKE_NVML);
  const std::string page = Page(*telemetry);
  for (const char* line : {
           "gemmd_gpu_power_watts{device=\"GPU-fake\"} 654.321",
           "gemmd_gpu_energy_joules_total{device=\"GPU-fake\"} 5000000000.5",
           "gemmd_gpu_temperature_celsius{device=\"GPU-fake\"} 61\n",
           "gemmd_gpu_utilization_ratio{device=\"GPU-fake\"} 0.75\n",
           "gemmd_gpu_memory_used_bytes{device=\"GPU-fake\"} 20000000000\n",
           "gemmd_gpu_memory_bytes{device=\"GPU-fake\"} 80000000000\n",
           "gemmd_gpu_clock_hertz{device=\"GPU-fake\",clock=\"sm\"} 1980000000\n",
           "gemmd_gpu_clock_hertz{device=\"GPU-fake\",clock=\"memory\"} 2619000000\n",
           "gemmd_gpu_throttled{device=\"GPU-fake\",reason=\"power_cap\"} 1\n",
           "gemmd_gpu_throttled{device=\"GPU-fake\",reason=\"hardware_thermal\"} 1\n",
           "gemmd_gpu_throttled{device=\"GPU-fake\",reason=\"software_thermal\"} 0\n",
       }) {
    EXPECT_THAT(page, HasSubstr(line));
  }
}

TEST(GpuTelemetryTest, AQuantityThatTheGpuDoesNotOfferHasNoSeries) {
  const std::string page = Page(*GpuTelemetry::Start({"GPU-fake"}, GEMMD_FAKE_NVML));
  EXPECT_THAT(page, Not(HasSubstr("gemmd_gpu_power_limit_watts{")));
  EXPECT_THAT(page, HasSubstr("# TYPE gemmd_gpu_power_limit_watts gauge\n"));
}

TEST(GpuTelemetryTest, AGpuThatIsLostHasNoSeriesUntilItIsBack) {
  FakeNvml nvml;
  const auto telemetry = GpuTelemetry::Start({"GPU-fake"}, GEMMD_FAKE_NVML);
  nvml.LoseGpu(true);
  WaitUntil([&] { return Page(*telemetry).find("{device=\"GPU-fake\"") == std::string::npos; });
  nvml.LoseGpu(false);
  WaitUntil([&] { return Page(*telemetry).find("{device=\"GPU-fake\"") != std::string::npos; });
}

TEST(GpuTelemetryTest, TheLibraryIsGivenBack) {
  FakeNvml nvml;
  auto telemetry = GpuTelemetry::Start({"GPU-fake"}, GEMMD_FAKE_NVML);
  EXPECT_EQ(nvml.users(), 1);
  telemetry.reset();
  EXPECT_EQ(nvml.users(), 0);
}

TEST(GpuTelemetryTest, AnUnknownGpuDoesNotKeepTheOthersOut) {
  const std::string page = Page(*GpuTelemetry::Start({"GPU-other", "GPU-fake"}, GEMMD_FAKE_NVML));
  EXPECT_THAT(page, HasSubstr("gemmd_gpu_power_watts{device=\"GPU-fake\"}"));
  EXPECT_THAT(page, Not(HasSubstr("GPU-other")));
}

TEST(GpuTelemetryTest, WithoutTheLibraryThereAreFamiliesAndNoSeries) {
  const std::string page = Page(*GpuTelemetry::Start({"GPU-fake"}, "/nonexistent/libnvidia-ml.so.1"));
  EXPECT_THAT(page, HasSubstr("# TYPE gemmd_gpu_power_watts gauge\n"));
  EXPECT_THAT(page, Not(HasSubstr("device=")));
}

TEST(GpuTelemetryTest, WithoutAGpuNothingIsLoaded) {
  FakeNvml nvml;
  const auto telemetry = GpuTelemetry::Start({"cpu"}, GEMMD_FAKE_NVML);
  EXPECT_EQ(nvml.users(), 0);
  EXPECT_THAT(Page(*telemetry), HasSubstr("# TYPE gemmd_gpu_clock_hertz gauge\n"));
}

TEST(NvmlTest, ALibraryWithoutTheFunctionsIsRefusedByName) {
  const absl::Status status = Nvml::Load("libm.so.6").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "NVML has no function nvmlInit_v2");
}

TEST(NvmlTest, AMissingLibraryIsNotFound) {
  EXPECT_EQ(Nvml::Load("/nonexistent/libnvidia-ml.so.1").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gemmd
