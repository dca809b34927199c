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
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU memory needs a CUDA driver on this machine: ", kLibrary, " was not found"));
  }
  const std::shared_ptr<CudaDriver> driver(new CudaDriver);
  if (absl::Status status = driver->FindAll(library); !status.ok()) return status;
  const int result = driver->init(0);
  if (result == cuda::kSuccess) return driver;
  return absl::FailedPreconditionError(driver->StatusOf(result, "starting the CUDA driver").message());
}

absl::Status CudaDriver::FindAll(void* library) {
  absl::Status status;
  Find(library, "cuInit", &init, &status);
  Find(library, "cuGetErrorName", &error_name, &status);
  Find(library, "cuDeviceGetCount", &device_count, &status);
  Find(library, "cuDeviceGet", &device_get, &status);
  Find(library, "cuDeviceGetUuid", &device_uuid, &status);
  Find(library, "cuDevicePrimaryCtxRetain", &primary_context_retain, &status);
  Find(library, "cuDevicePrimaryCtxRelease_v2", &primary_context_release, &status);
  Find(library, "cuCtxPushCurrent_v2", &context_push, &status);
  Find(library, "cuCtxPopCurrent_v2", &context_pop, &status);
  Find(library, "cuCtxSynchronize", &context_synchronize, &status);
  Find(library, "cuMemCreate", &memory_create, &status);
  Find(library, "cuMemRelease", &memory_release, &status);
  Find(library, "cuMemAddressReserve", &address_reserve, &status);
  Find(library, "cuMemAddressFree", &address_free, &status);
  Find(library, "cuMemMap", &map, &status);
  Find(library, "cuMemUnmap", &unmap, &status);
  Find(library, "cuMemSetAccess", &set_access, &status);
  Find(library, "cuMemExportToShareableHandle", &export_handle, &status);
  Find(library, "cuMemImportFromShareableHandle", &import_handle, &status);
  Find(library, "cuMemGetAllocationGranularity", &granularity, &status);
  Find(library, "cuMemAlloc_v2", &allocate, &status);
  Find(library, "cuMemFree_v2", &free, &status);
  Find(library, "cuIpcGetMemHandle", &ipc_handle, &status);
  Find(library, "cuMemGetAddressRange_v2", &address_range, &status);
  Find(library, "cuPointerGetAttribute", &pointer_attribute, &status);
  Find(library, "cuMemcpyHtoD_v2", &copy_to_gpu, &status);
  Find(library, "cuMemcpyDtoH_v2", &copy_to_host, &status);
  Find(library, "cuMemsetD8_v2", &set_bytes, &status);
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
