// SPDX-License-Identifier: Apache-2.0
// The functions of the CUDA driver that sharing GPU memory takes, found in libcuda at run time: programs that share no
// GPU memory need neither a driver nor, to be built, a CUDA toolkit. Types and constants are those of cuda.h, whose ABI
// NVIDIA keeps (the numbered suffixes are the current functions); tests/client/cuda_driver_test.cc compares them with
// it where there is one. Used by client/gpu.h.
#ifndef GEMMD_CLIENT_CUDA_DRIVER_H_
#define GEMMD_CLIENT_CUDA_DRIVER_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace gemmd {

// As cuda.h has them.
namespace cuda {

using Address = unsigned long long;       // CUdeviceptr
using MemoryHandle = unsigned long long;  // CUmemGenericAllocationHandle
using Context = void*;                    // CUcontext

inline constexpr int kSuccess = 0;
inline constexpr int kInvalidValue = 1;
inline constexpr int kOutOfMemory = 2;

inline constexpr int kPinned = 1;           // CU_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kPosixDescriptor = 1;  // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
inline constexpr int kOnDevice = 1;         // CU_MEM_LOCATION_TYPE_DEVICE
inline constexpr int kReadWrite = 3;        // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
inline constexpr int kMinimum = 0;          // CU_MEM_ALLOC_GRANULARITY_MINIMUM
inline constexpr int kDeviceOrdinal = 9;    // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL

struct Location {  // CUmemLocation
  int type = 0;
  int id = 0;
};

struct AllocationProperties {  // CUmemAllocationProp
  int type = 0;
  int handle_types = 0;
  Location location;
  void* win32 = nullptr;
  uint8_t flags[8] = {};
};

struct Access {  // CUmemAccessDesc
  Location location;
  int flags = 0;
};

struct Uuid {  // CUuuid
  uint8_t bytes[16] = {};
};

struct IpcHandle {  // CUipcMemHandle
  uint8_t bytes[64] = {};
};

}  // namespace cuda

// A table of functions. libcuda stays loaded: it has threads and contexts that outlive any user here.
class CudaDriver {
 public:
  // Errors: FAILED_PRECONDITION (no driver, no GPU, or a driver without one of the functions).
  static absl::StatusOr<std::shared_ptr<const CudaDriver>> Load();
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  // `what` and the name of the error. RESOURCE_EXHAUSTED: no memory; INVALID_ARGUMENT; INTERNAL: all others.
  absl::Status StatusOf(int result, absl::string_view what) const;

  int (*init)(unsigned flags) = nullptr;
  int (*error_name)(int result, const char** name) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device_get)(int* device, int ordinal) = nullptr;
  int (*device_uuid)(cuda::Uuid* uuid, int device) = nullptr;
  int (*primary_context_retain)(cuda::Context* context, int device) = nullptr;
  int (*primary_context_release)(int device) = nullptr;
  int (*context_push)(cuda::Context context) = nullptr;
  int (*context_pop)(cuda::Context* context) = nullptr;
  int (*context_synchronize)() = nullptr;
  int (*memory_create)(cuda::MemoryHandle*, size_t byte_size, const cuda::AllocationProperties*,
                       unsigned long long flags) = nullptr;
  int (*memory_release)(cuda::MemoryHandle) = nullptr;
  int (*address_reserve)(cuda::Address*, size_t byte_size, size_t alignment, cuda::Address wish,
                         unsigned long long flags) = nullptr;
  int (*address_free)(cuda::Address, size_t byte_size) = nullptr;
  int (*map)(cuda::Address, size_t byte_size, size_t offset, cuda::MemoryHandle, unsigned long long flags) = nullptr;
  int (*unmap)(cuda::Address, size_t byte_size) = nullptr;
  int (*set_access)(cuda::Address, size_t byte_size, const cuda::Access*, size_t count) = nullptr;
  int (*export_handle)(void* descriptor, cuda::MemoryHandle, int type, unsigned long long flags) = nullptr;
  int (*import_handle)(cuda::MemoryHandle*, void* descriptor, int type) = nullptr;
  int (*granularity)(size_t* byte_size, const cuda::AllocationProperties*, int option) = nullptr;
  int (*allocate)(cuda::Address*, size_t byte_size) = nullptr;
  int (*free)(cuda::Address) = nullptr;
  int (*ipc_handle)(cuda::IpcHandle*, cuda::Address) = nullptr;
  int (*address_range)(cuda::Address* base, size_t* byte_size, cuda::Address) = nullptr;
  int (*pointer_attribute)(void* value, int attribute, cuda::Address) = nullptr;
  int (*copy_to_gpu)(cuda::Address, const void* host, size_t byte_size) = nullptr;
  int (*copy_to_host)(void* host, cuda::Address, size_t byte_size) = nullptr;
  int (*set_bytes)(cuda::Address, unsigned char value, size_t byte_size) = nullptr;

 private:
  CudaDriver() = default;
  absl::Status FindAll(void* library);
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_CUDA_DRIVER_H_
