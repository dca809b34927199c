// SPDX-License-Identifier: Apache-2.0
// What client/cuda_driver.h repeats of cuda.h, compared with it.
#include "client/cuda_driver.h"

#include <cuda.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <type_traits>

namespace gemmd::cuda {
namespace {

static_assert(std::is_same_v<Address, CUdeviceptr>);
static_assert(std::is_same_v<MemoryHandle, CUmemGenericAllocationHandle>);
static_assert(sizeof(Context) == sizeof(CUcontext));

TEST(CudaDriverTest, ConstantsAreThoseOfTheToolkit) {
  EXPECT_EQ(kSuccess, CUDA_SUCCESS);
  EXPECT_EQ(kInvalidValue, CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(kPinned, CU_MEM_ALLOCATION_TYPE_PINNED);
  EXPECT_EQ(kPosixDescriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  EXPECT_EQ(kOnDevice, CU_MEM_LOCATION_TYPE_DEVICE);
  EXPECT_EQ(kReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  EXPECT_EQ(kMinimum, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  EXPECT_EQ(kDeviceOrdinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
}

TEST(CudaDriverTest, StructsAreThoseOfTheToolkit) {
  EXPECT_EQ(sizeof(Location), sizeof(CUmemLocation));
  EXPECT_EQ(offsetof(Location, id), offsetof(CUmemLocation, id));
  EXPECT_EQ(sizeof(AllocationProperties), sizeof(CUmemAllocationProp));
  EXPECT_EQ(offsetof(AllocationProperties, handle_types), offsetof(CUmemAllocationProp, requestedHandleTypes));
  EXPECT_EQ(offsetof(AllocationProperties, location), offsetof(CUmemAllocationProp, location));
  EXPECT_EQ(offsetof(AllocationProperties, flags), offsetof(CUmemAllocationProp, allocFlags));
  EXPECT_EQ(sizeof(Access), sizeof(CUmemAccessDesc));
  EXPECT_EQ(offsetof(Access, flags), offsetof(CUmemAccessDesc, flags));
  EXPECT_EQ(sizeof(Uuid), sizeof(CUuuid));
  EXPECT_EQ(sizeof(IpcHandle), sizeof(CUipcMemHandle));
}

}  // namespace
}  // namespace gemmd::cuda
