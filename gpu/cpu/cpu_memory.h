// SPDX-License-Identifier: Apache-2.0
// Memory that the CPU device reaches: sealed memory through a mapping; POSIX shared memory, which its owner may
// truncate at any time, through pread and pwrite alone. Any thread.
#ifndef GEMMD_GPU_CPU_CPU_MEMORY_H_
#define GEMMD_GPU_CPU_CPU_MEMORY_H_

#include "gpu/device.h"
#include "proto/shared_memory.h"
#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace gemmd {

class CpuMemory : public DeviceMemory {
 public:
  // Errors: as Device::Map.
  static absl::StatusOr<std::shared_ptr<CpuMemory>> Open(const RegionSpec& spec, UniqueFd fd);

  uint64_t byte_size() const override { return byte_size_; }
  absl::Status ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const override;

  // OUT_OF_RANGE if the memory no longer reaches so far; never makes it longer.
  absl::Status WriteBytes(uint64_t offset, uint64_t byte_size, const void* source);

  // Null if the memory is reached by ReadBytes and WriteBytes only.
  std::byte* data() const { return mapping_.data(); }

 private:
  CpuMemory(uint64_t byte_size, SharedMapping mapping, UniqueFd fd);

  uint64_t byte_size_;
  SharedMapping mapping_;
  UniqueFd fd_;  // Invalid if mapped.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_CPU_MEMORY_H_
