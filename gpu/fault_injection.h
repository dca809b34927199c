// SPDX-License-Identifier: Apache-2.0
// Faults on demand, for tests of everything that must survive them: when the named file appears, the next batch that
// goes to the device meets the fault that the file names. One file is one fault: it is removed as it is read.
#ifndef GEMMD_GPU_FAULT_INJECTION_H_
#define GEMMD_GPU_FAULT_INJECTION_H_

#include "gpu/device.h"

#include <optional>
#include <string>
#include <utility>

namespace gemmd {

class FaultInjection {
 public:
  FaultInjection() = default;  // Never a fault.
  explicit FaultInjection(std::string path) : path_(std::move(path)) {}

  // The fault that the file asks for: "illegal_access" or "hang". An unknown word is logged and ignored.
  std::optional<DeviceFault> Take() const;

 private:
  std::string path_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_FAULT_INJECTION_H_
