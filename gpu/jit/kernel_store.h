// SPDX-License-Identifier: Apache-2.0
// Compiled kernels on disk: one file per key, shared by any number of processes. A file appears whole or not at all
// (written beside, then renamed), is checked by length, key and checksum when read, and counts as missing if anything
// is wrong with it. The folder is bounded: what was not used for longest goes first. Thread-safe.
#ifndef GEMMD_GPU_JIT_KERNEL_STORE_H_
#define GEMMD_GPU_JIT_KERNEL_STORE_H_

#include "gpu/jit/kernel_key.h"
#include "gpu/jit/nvrtc_compiler.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <cstdint>
#include <optional>
#include <string>

namespace gemmd {

class KernelStore {
 public:
  // Makes the folder if it is not there. Errors: those of mkdir.
  static absl::StatusOr<KernelStore> Open(std::string directory, uint64_t byte_limit);

  // The kernel, or none if it is missing or its file is damaged; a damaged file is removed.
  std::optional<CompiledKernel> Load(const KernelKey& key) const;

  // Returns how many older kernels made room for it.
  // Errors: RESOURCE_EXHAUSTED or UNAVAILABLE when the file cannot be written; the old state then remains.
  absl::StatusOr<uint64_t> Save(const KernelKey& key, const CompiledKernel& kernel) const;

 private:
  KernelStore(std::string directory, uint64_t byte_limit) : directory_(std::move(directory)), byte_limit_(byte_limit) {}

  std::string PathOf(const KernelKey& key) const;
  uint64_t RemoveOldest() const;

  std::string directory_;
  uint64_t byte_limit_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_JIT_KERNEL_STORE_H_
