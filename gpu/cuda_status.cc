// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda_status.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"

#include <string>

namespace gemmd {
namespace {

constexpr char kErrorPayload[] = "gemmd/cuda";

absl::Status StatusOf(cudaError_t error, absl::string_view what) {
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorName(error));
  if (IsSticky(error)) return absl::DataLossError(message);
  switch (error) {
    case cudaErrorMemoryAllocation:
    case cudaErrorHostMemoryAlreadyRegistered:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorNoKernelImageForDevice:
      return absl::FailedPreconditionError(message);
    case cudaErrorInvalidValue:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorExternalDevice:
    case cudaErrorContextIsDestroyed:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

DeviceErrorClass ErrorClassOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
    case cudaErrorHostMemoryAlreadyRegistered:
      return DeviceErrorClass::kOutOfMemory;
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorTensorMemoryLeak:
      return DeviceErrorClass::kKernelFault;
    case cudaErrorLaunchTimeout:
    case cudaErrorTimeout:
      return DeviceErrorClass::kTimeout;
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorExternalDevice:
    case cudaErrorDevicesUnavailable:
      return DeviceErrorClass::kHardware;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
      return DeviceErrorClass::kInvalid;
    default:
      return DeviceErrorClass::kOther;
  }
}

absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  absl::Status status = StatusOf(error, what);
  status.SetPayload(kErrorPayload, absl::Cord(absl::StrCat(static_cast<int>(error))));
  return status;
}

cudaError_t CudaErrorOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kErrorPayload);
  int error = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &error)) return cudaSuccess;
  return static_cast<cudaError_t>(error);
}

absl::Status CudaStatus(CUresult result, absl::string_view what) {
  // The runtime's numbers are the driver's for every code that both have.
  return CudaStatus(static_cast<cudaError_t>(result), what);
}

}  // namespace gemmd
