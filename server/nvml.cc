// SPDX-License-Identifier: Apache-2.0
#include "server/nvml.h"

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include <dlfcn.h>

namespace gemmd {
namespace {

template <typename Function>
absl::Status Find(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("NVML has no function ", name));
}

absl::Status FindAll(void* handle, NvmlFunctions& functions) {
  absl::Status status = Find(handle, "nvmlInit_v2", &functions.init);
  status.Update(Find(handle, "nvmlShutdown", &functions.shutdown));
  status.Update(Find(handle, "nvmlErrorString", &functions.error_string));
  status.Update(Find(handle, "nvmlDeviceGetHandleByUUID", &functions.device_by_uuid));
  status.Update(Find(handle, "nvmlDeviceGetClockInfo", &functions.clock));
  status.Update(Find(handle, "nvmlDeviceGetPowerUsage", &functions.power));
  status.Update(Find(handle, "nvmlDeviceGetEnforcedPowerLimit", &functions.power_limit));
  status.Update(Find(handle, "nvmlDeviceGetTotalEnergyConsumption", &functions.energy));
  status.Update(Find(handle, "nvmlDeviceGetCurrentClocksThrottleReasons", &functions.throttle_reasons));
  status.Update(Find(handle, "nvmlDeviceGetTemperature", &functions.temperature));
  status.Update(Find(handle, "nvmlDeviceGetUtilizationRates", &functions.utilization));
  status.Update(Find(handle, "nvmlDeviceGetMemoryInfo", &functions.memory));
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Load(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* text = dlerror();
    return absl::NotFoundError(absl::StrCat("no NVML: ", text == nullptr ? library : text));
  }
  auto nvml = absl::WrapUnique(new Nvml(handle));
  if (absl::Status status = FindAll(handle, nvml->functions_); !status.ok()) return status;
  const int error = nvml->functions_.init();
  if (error != kNvmlSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("NVML does not start: ", nvml->functions_.error_string(error), " (", error, ")"));
  }
  nvml->initialised_ = true;
  return nvml;
}

Nvml::~Nvml() {
  if (initialised_) functions_.shutdown();
  dlclose(handle_);
}

}  // namespace gemmd
