// SPDX-License-Identifier: Apache-2.0
// A libnvidia-ml.so with one GPU, "GPU-fake": the C interface that server/nvml.h knows, with fixed answers. It does not
// offer a power limit, and answers nothing any more after FakeNvmlLoseGpu.
#include <atomic>
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;
constexpr int kGpuIsLost = 15;

std::atomic<bool> lost{false};
std::atomic<int> users{0};
int the_gpu = 0;

template <typename Number>
int Answer(const void* gpu, Number* to, Number value) {
  if (gpu != &the_gpu || users == 0) return kNotFound;
  if (lost) return kGpuIsLost;
  *to = value;
  return kSuccess;
}

}  // namespace

extern "C" {

void FakeNvmlLoseGpu(bool is_lost) { lost = is_lost; }
int FakeNvmlUsers() { return users; }

int nvmlInit_v2() {
  ++users;
  return kSuccess;
}
int nvmlShutdown() {
  --users;
  return kSuccess;
}
const char* nvmlErrorString(int error) { return error == kNotFound ? "Not Found" : "Unknown Error"; }
int nvmlDeviceGetHandleByUUID(const char* uuid, void** gpu) {
  if (std::strcmp(uuid, "GPU-fake") != 0) return kNotFound;
  *gpu = &the_gpu;
  return kSuccess;
}
int nvmlDeviceGetClockInfo(void* gpu, int clock, unsigned* megahertz) {
  return Answer(gpu, megahertz, clock == 1 ? 1980U : 2619U);
}
int nvmlDeviceGetPowerUsage(void* gpu, unsigned* milliwatts) { return Answer(gpu, milliwatts, 654'321U); }
int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned*) { return kNotSupported; }
int nvmlDeviceGetTotalEnergyConsumption(void* gpu, unsigned long long* millijoules) {
  return Answer(gpu, millijoules, 5'000'000'000'500ULL);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void* gpu, unsigned long long* bits) {
  return Answer(gpu, bits, 0x45ULL);
}
int nvmlDeviceGetTemperature(void* gpu, int, unsigned* celsius) { return Answer(gpu, celsius, 61U); }
int nvmlDeviceGetUtilizationRates(void* gpu, unsigned* percents) {
  percents[1] = 50;
  return Answer(gpu, percents, 75U);
}
int nvmlDeviceGetMemoryInfo(void* gpu, unsigned long long* sizes) {
  sizes[1] = 60'000'000'000ULL;
  sizes[2] = 20'000'000'000ULL;
  return Answer(gpu, sizes, 80'000'000'000ULL);
}

}  // extern "C"
