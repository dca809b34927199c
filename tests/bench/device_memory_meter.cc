// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/device_memory_meter.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

#include <dlfcn.h>
#include <string>
#include <utility>

namespace gemmd {
namespace {

std::string HexDigits(const cuda::Uuid& uuid) {
  std::string digits;
  for (const uint8_t byte : uuid.bytes) absl::StrAppend(&digits, absl::StrFormat("%02x", byte));
  return digits;
}

absl::StatusOr<int> FindDevice(const CudaDriver& driver, absl::string_view uuid) {
  const std::string wanted = absl::StrReplaceAll(uuid, {{"GPU-", ""}, {"-", ""}});
  int count = 0;
  if (absl::Status status = driver.StatusOf(driver.device_count(&count), "counting GPUs"); !status.ok()) return status;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    int device = 0;
    cuda::Uuid found;
    if (driver.device_get(&device, ordinal) != cuda::kSuccess) continue;
    if (driver.device_uuid(&found, device) == cuda::kSuccess && HexDigits(found) == wanted) return device;
  }
  return absl::NotFoundError(absl::StrCat("no GPU ", uuid));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemoryMeter>> DeviceMemoryMeter::Open(absl::string_view uuid) {
  absl::StatusOr<std::shared_ptr<const CudaDriver>> driver = CudaDriver::Load();
  if (!driver.ok()) return driver.status();
  // CudaDriver keeps the library loaded.
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const auto memory_info =
      library == nullptr ? nullptr : reinterpret_cast<MemoryInfo>(dlsym(library, "cuMemGetInfo_v2"));
  if (memory_info == nullptr) return absl::FailedPreconditionError("the CUDA driver has no cuMemGetInfo_v2");
  const absl::StatusOr<int> device = FindDevice(**driver, uuid);
  if (!device.ok()) return device.status();
  std::unique_ptr<DeviceMemoryMeter> meter(new DeviceMemoryMeter(*driver, memory_info, *device));
  const int result = (*driver)->primary_context_retain(&meter->context_, *device);
  if (absl::Status status = (*driver)->StatusOf(result, "opening a GPU"); !status.ok()) return status;
  return meter;
}

DeviceMemoryMeter::DeviceMemoryMeter(std::shared_ptr<const CudaDriver> driver, MemoryInfo memory_info, int device)
    : driver_(std::move(driver)), memory_info_(memory_info), device_(device) {}

DeviceMemoryMeter::~DeviceMemoryMeter() {
  if (context_ != nullptr) driver_->primary_context_release(device_);
}

absl::StatusOr<int64_t> DeviceMemoryMeter::UsedBytes() const {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  driver_->context_push(context_);
  const int result = memory_info_(&free_bytes, &total_bytes);
  cuda::Context popped = nullptr;
  driver_->context_pop(&popped);
  if (absl::Status status = driver_->StatusOf(result, "asking for free memory"); !status.ok()) return status;
  return static_cast<int64_t>(total_bytes - free_bytes);
}

}  // namespace gemmd
