// SPDX-License-Identifier: Apache-2.0
// The few functions of NVIDIA's management library that the front end calls, found at run time: machines without a
// driver have none. It talks to the driver, but makes no CUDA context. Used by server/gpu_telemetry.h.
#ifndef GEMMD_SERVER_NVML_H_
#define GEMMD_SERVER_NVML_H_

#include "absl/status/statusor.h"

#include <cstdint>
#include <memory>
#include <string>

namespace gemmd {

// Parts of the library's C interface, whose names and numbers never change.
struct NvmlDevice;
struct NvmlUtilization {
  unsigned gpu = 0;  // Percent.
  unsigned memory = 0;
};
struct NvmlMemory {
  unsigned long long total = 0;  // Bytes.
  unsigned long long free = 0;
  unsigned long long used = 0;
};
inline constexpr int kNvmlSuccess = 0;
inline constexpr int kNvmlClockSm = 1;
inline constexpr int kNvmlClockMemory = 2;
inline constexpr int kNvmlTemperatureGpu = 0;

// All return kNvmlSuccess or an error number. Thread-safe, as the library is.
struct NvmlFunctions {
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int error) = nullptr;
  int (*device_by_uuid)(const char* uuid, NvmlDevice** device) = nullptr;
  int (*clock)(NvmlDevice* device, int clock, unsigned* megahertz) = nullptr;
  int (*power)(NvmlDevice* device, unsigned* milliwatts) = nullptr;
  int (*power_limit)(NvmlDevice* device, unsigned* milliwatts) = nullptr;
  int (*energy)(NvmlDevice* device, unsigned long long* millijoules) = nullptr;
  int (*throttle_reasons)(NvmlDevice* device, unsigned long long* bits) = nullptr;
  int (*temperature)(NvmlDevice* device, int sensor, unsigned* celsius) = nullptr;
  int (*utilization)(NvmlDevice* device, NvmlUtilization* utilization) = nullptr;
  int (*memory)(NvmlDevice* device, NvmlMemory* memory) = nullptr;
};

// The library, loaded and initialised.
class Nvml {
 public:
  // `library` as dlopen takes it. Errors, in one line: NOT_FOUND (no such library), FAILED_PRECONDITION (a function is
  // missing, or the driver does not answer).
  static absl::StatusOr<std::unique_ptr<Nvml>> Load(const std::string& library);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  const NvmlFunctions& functions() const { return functions_; }

 private:
  explicit Nvml(void* handle) : handle_(handle) {}

  void* const handle_;
  NvmlFunctions functions_;
  bool initialised_ = false;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_NVML_H_
