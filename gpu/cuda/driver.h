// SPDX-License-Identifier: Apache-2.0
// The driver functions that the CUDA runtime has no equal for, and those that start kernels with less work on the host
// than the runtime's. libcuda is never linked: programs start on machines without a driver, and find out here.
#ifndef GEMMD_GPU_CUDA_DRIVER_H_
#define GEMMD_GPU_CUDA_DRIVER_H_

#include "absl/status/statusor.h"
#include <cuda.h>
#include <cuda_runtime_api.h>

namespace gemmd {

inline bool IsHopper(const cudaDeviceProp& properties) { return properties.major == 9 && properties.minor == 0; }

struct Driver {
  decltype(&cuTensorMapEncodeTiled) tensor_map_encode_tiled = nullptr;
  decltype(&cuKernelGetFunction) kernel_function = nullptr;
  decltype(&cuFuncLoad) function_load = nullptr;  // Null before CUDA 12.4.
  decltype(&cuFuncSetAttribute) function_set_attribute = nullptr;
  decltype(&cuLaunchKernelEx) launch_kernel = nullptr;
  decltype(&cuMemCreate) mem_create = nullptr;
  decltype(&cuMemRelease) mem_release = nullptr;
  decltype(&cuMemAddressReserve) mem_address_reserve = nullptr;
  decltype(&cuMemAddressFree) mem_address_free = nullptr;
  decltype(&cuMemMap) mem_map = nullptr;
  decltype(&cuMemUnmap) mem_unmap = nullptr;
  decltype(&cuMemSetAccess) mem_set_access = nullptr;
  decltype(&cuMemExportToShareableHandle) mem_export = nullptr;
  decltype(&cuMemImportFromShareableHandle) mem_import = nullptr;
  decltype(&cuMemGetAllocationGranularity) mem_granularity = nullptr;
  decltype(&cuMemGetAllocationPropertiesFromHandle) mem_properties = nullptr;
  decltype(&cuMemGetAddressRange) mem_address_range = nullptr;

  // Errors: FAILED_PRECONDITION if there is no driver, or one too old.
  static absl::StatusOr<Driver> Load();
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_DRIVER_H_
