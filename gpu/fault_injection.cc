// SPDX-License-Identifier: Apache-2.0
#include "gpu/fault_injection.h"

#include <spdlog/spdlog.h>

#include <fstream>
#include <unistd.h>

namespace gemmd {

std::optional<DeviceFault> FaultInjection::Take() const {
  if (path_.empty()) return std::nullopt;
  std::ifstream file(path_);
  std::string word;
  if (!(file >> word)) return std::nullopt;
  unlink(path_.c_str());
  spdlog::warn("injecting a fault for a test: {}", word);
  if (word == "illegal_access") return DeviceFault::kIllegalAccess;
  if (word == "hang") return DeviceFault::kHang;
  spdlog::error("{}: expected illegal_access or hang, got \"{}\"", path_, word);
  return std::nullopt;
}

}  // namespace gemmd
