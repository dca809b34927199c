// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/driver.h"

#include "gpu/cuda_status.h"

#include "absl/strings/str_cat.h"
#include <cuda_runtime_api.h>

namespace gemmd {
namespace {

constexpr unsigned kDriverVersion = 12000;  // What must be there exists since CUDA 12.0.
constexpr unsigned kLoadVersion = 12040;    // cuFuncLoad.

template <typename Function>
absl::Status Find(const char* name, Function* function, unsigned version = kDriverVersion) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found);
  if (error != cudaSuccess) return CudaStatus(error, absl::StrCat("finding ", name));
  if (found != cudaDriverEntryPointSuccess || address == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("the driver has no ", name));
  }
  *function = reinterpret_cast<Function>(address);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Driver> Driver::Load() {
  Driver driver;
  absl::Status status;
  status.Update(Find("cuTensorMapEncodeTiled", &driver.tensor_map_encode_tiled));
  status.Update(Find("cuKernelGetFunction", &driver.kernel_function));
  status.Update(Find("cuFuncSetAttribute", &driver.function_set_attribute));
  status.Update(Find("cuLaunchKernelEx", &driver.launch_kernel));
  status.Update(Find("cuMemCreate", &driver.mem_create));
  status.Update(Find("cuMemRelease", &driver.mem_release));
  status.Update(Find("cuMemAddressReserve", &driver.mem_address_reserve));
  status.Update(Find("cuMemAddressFree", &driver.mem_address_free));
  status.Update(Find("cuMemMap", &driver.mem_map));
  status.Update(Find("cuMemUnmap", &driver.mem_unmap));
  status.Update(Find("cuMemSetAccess", &driver.mem_set_access));
  status.Update(Find("cuMemExportToShareableHandle", &driver.mem_export));
  status.Update(Find("cuMemImportFromShareableHandle", &driver.mem_import));
  status.Update(Find("cuMemGetAllocationGranularity", &driver.mem_granularity));
  status.Update(Find("cuMemGetAllocationPropertiesFromHandle", &driver.mem_properties));
  status.Update(Find("cuMemGetAddressRange", &driver.mem_address_range));
  if (!status.ok()) return status;
  if (!Find("cuFuncLoad", &driver.function_load, kLoadVersion).ok()) cudaGetLastError();
  return driver;
}

}  // namespace gemmd
