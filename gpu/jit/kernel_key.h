// SPDX-License-Identifier: Apache-2.0
// What makes one compiled kernel different from another, by content alone: no paths, names of machines or times. Equal
// keys mean that compiling would give the same code. Used by the kernel cache and as the name of its files.
#ifndef GEMMD_GPU_JIT_KERNEL_KEY_H_
#define GEMMD_GPU_JIT_KERNEL_KEY_H_

#include "absl/strings/string_view.h"

#include <cstdint>
#include <string>

namespace gemmd {

// Two 64-bit FNV-1a hashes with different starts: for finding accidental differences, not for defence.
struct Digest {
  uint64_t high = 0;
  uint64_t low = 0;

  bool operator==(const Digest&) const = default;
  std::string Hex() const;  // 32 characters.
};

Digest DigestOf(absl::string_view bytes);

struct KernelKey {
  std::string expression;  // The instantiation: "gemmd::Gemm<gemmd::GemmTraits{128, ...}>".
  std::string arch;        // "sm_90a".
  std::string compiler;    // "NVRTC 13.0", with the options that change code.
  Digest sources;          // Of everything that the kernel may include.

  bool operator==(const KernelKey&) const = default;
  Digest digest() const;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_JIT_KERNEL_KEY_H_
