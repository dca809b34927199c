// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda_status.h"

#include <gtest/gtest.h>

namespace gemmd {
namespace {

TEST(CudaStatusTest, TheErrorIsFoundAgainInTheStatus) {
  EXPECT_EQ(CudaErrorOf(CudaStatus(cudaErrorMemoryAllocation, "test")), cudaErrorMemoryAllocation);
  EXPECT_EQ(CudaErrorOf(CudaStatus(CUDA_ERROR_ILLEGAL_ADDRESS, "test")), cudaErrorIllegalAddress);
  EXPECT_EQ(CudaErrorOf(absl::OkStatus()), cudaSuccess);
  EXPECT_EQ(CudaErrorOf(absl::InternalError("made otherwise")), cudaSuccess);
}

TEST(CudaStatusTest, ErrorsHaveTheClassThatAnOperatorActsOn) {
  EXPECT_EQ(ErrorClassOf(cudaErrorMemoryAllocation), DeviceErrorClass::kOutOfMemory);
  EXPECT_EQ(ErrorClassOf(cudaErrorIllegalAddress), DeviceErrorClass::kKernelFault);
  EXPECT_EQ(ErrorClassOf(cudaErrorLaunchTimeout), DeviceErrorClass::kTimeout);
  EXPECT_EQ(ErrorClassOf(cudaErrorECCUncorrectable), DeviceErrorClass::kHardware);
  EXPECT_EQ(ErrorClassOf(cudaErrorInvalidValue), DeviceErrorClass::kInvalid);
  EXPECT_EQ(ErrorClassOf(cudaErrorUnknown), DeviceErrorClass::kOther);
}

TEST(CudaStatusTest, WhatEndsAWorkerIsDataLoss) {
  EXPECT_TRUE(absl::IsDataLoss(CudaStatus(cudaErrorIllegalAddress, "test")));
  EXPECT_TRUE(absl::IsResourceExhausted(CudaStatus(cudaErrorMemoryAllocation, "test")));
}

}  // namespace
}  // namespace gemmd
