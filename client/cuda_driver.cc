// SPDX-License-Identifier: Apache-2.0
#include "client/cuda_driver.h"

#include "absl/strings/str_cat.h"

#include <dlfcn.h>

namespace gemmd {
namespace {

constexpr char kLibrary[] = "libcuda.so.1";

template <typename Function>
void Find(void* library, const char* name, Function* function, absl::Status* status) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) {
    status->Update(absl::FailedPreconditionError(absl::StrCat("the CUDA driver of this machine has no ", name)));
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const CudaDriver>> CudaDriver::Load() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU memory needs a CUDA driver on this machine: ", kLibrary, " was not found"));
  }
  const std::shared_ptr<CudaDriver> driver(new CudaDriver(library));
  if (absl::Status status = driver->FindAll(); !status.ok()) return status;
  const int result = driver->init(0);
  if (result == cuda::kSuccess) return driver;
  return absl::FailedPreconditionError(driver->StatusOf(result, "starting the CUDA driver").message());
}

CudaDriver::~CudaDriver() { dlclose(library_); }

absl::Status CudaDriver::FindAll() {
  absl::Status status;
  Find(library_, "cuInit", &init, &status);
  Find(library_, "cuGetErrorName", &error_name, &status);
  Find(library_, "cuDeviceGetCount", &device_count, &status);
  Find(library_, "cuDeviceGet", &device_get, &status);
  Find(library_, "cuDeviceGetUuid", &device_uuid, &status);
  Find(library_, "cuDevicePrimaryCtxRetain", &primary_context_retain, &status);
  Find(library_, "cuDevicePrimaryCtxRelease_v2", &primary_context_release, &status);
  Find(library_, "cuCtxPushCurrent_v2", &context_push, &status);
  Find(library_, "cuCtxPopCurrent_v2", &context_pop, &status);
  Find(library_, "cuCtxSynchronize", &context_synchronize, &status);
  Find(library_, "cuMemCreate", &memory_create, &status);
  Find(library_, "cuMemRelease", &memory_release, &status);
  Find(library_, "cuMemAddressReserve", &address_reserve, &status);
  Find(library_, "cuMemAddressFree", &address_free, &status);
  Find(library_, "cuMemMap", &map, &status);
  Find(library_, "cuMemUnmap", &unmap, &status);
  Find(library_, "cuMemSetAccess", &set_access, &status);
  Find(library_, "cuMemExportToShareableHandle", &export_handle, &status);
  Find(library_, "cuMemImportFromShareableHandle", &import_handle, &status);
  Find(library_, "cuMemGetAllocationGranularity", &granularity, &status);
  Find(library_, "cuMemAlloc_v2", &allocate, &status);
  Find(library_, "cuMemFree_v2", &free, &status);
  Find(library_, "cuIpcGetMemHandle", &ipc_handle, &status);
  Find(library_, "cuMemGetAddressRange_v2", &address_range, &status);
  Find(library_, "cuPointerGetAttribute", &pointer_attribute, &status);
  Find(library_, "cuMemcpyHtoD_v2", &copy_to_gpu, &status);
  Find(library_, "cuMemcpyDtoH_v2", &copy_to_host, &status);
  Find(library_, "cuMemsetD8_v2", &set_bytes, &status);
  return status;
}

absl::Status CudaDriver::StatusOf(int result, absl::string_view what) const {
  if (result == cuda::kSuccess) return absl::OkStatus();
  const char* name = nullptr;
  if (error_name == nullptr || error_name(result, &name) != cuda::kSuccess || name == nullptr) name = "unknown error";
  const std::string message = absl::StrCat(what, ": ", name);
  if (result == cuda::kOutOfMemory) return absl::ResourceExhaustedError(message);
  if (result == cuda::kInvalidValue) return absl::InvalidArgumentError(message);
  return absl::InternalError(message);
}

}  // namespace gemmd
