// SPDX-License-Identifier: Apache-2.0
#include "gpu/device.h"

#include <signal.h>
#include <unistd.h>

namespace gemmd {

Reason FailureReason(JobField field, const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return {};
    case absl::StatusCode::kResourceExhausted:
      return {.field = field, .rule = Rule::kOutOfMemory};
    case absl::StatusCode::kOutOfRange:
      return {.field = field, .rule = Rule::kRegionShrank};
    case absl::StatusCode::kUnimplemented:
      return {.field = field, .rule = Rule::kUnsupported};
    case absl::StatusCode::kDataLoss:
      return {.field = JobField::kDevice, .rule = Rule::kDeviceLost, .got = status.raw_code()};
    default:
      return {.field = JobField::kDevice, .rule = Rule::kDeviceFailed, .got = status.raw_code()};
  }
}

void Device::InjectFault(DeviceFault fault) {
  if (fault == DeviceFault::kIllegalAccess) raise(SIGSEGV);
  while (true) pause();
}

}  // namespace gemmd
