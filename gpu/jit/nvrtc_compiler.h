// SPDX-License-Identifier: Apache-2.0
// Compiles one instantiation of the embedded kernel sources with NVRTC. Needs no driver and no GPU. Thread-safe: each
// call has a program of its own.
#ifndef GEMMD_GPU_JIT_NVRTC_COMPILER_H_
#define GEMMD_GPU_JIT_NVRTC_COMPILER_H_

#include "gpu/jit/kernel_key.h"
#include "gpu/jit/kernel_source.h"
#include "gpu/jit/nvrtc.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include <string>

namespace gemmd {

struct CompiledKernel {
  std::string symbol;  // The kernel's mangled name in the cubin.
  std::string cubin;
};

class NvrtcCompiler {
 public:
  // `sources` must outlive the compiler; `main_sources` are the names of those that are included at the top; `macros`
  // are defined before them. Errors: FAILED_PRECONDITION if NVRTC is not installed.
  static absl::StatusOr<NvrtcCompiler> Create(absl::Span<const KernelSource> sources,
                                              absl::Span<const absl::string_view> main_sources,
                                              absl::Span<const std::string> macros = {});

  KernelKey KeyOf(absl::string_view expression) const;

  // Errors: INTERNAL with the first line of the compiler's log, which `log` (if given) receives in full either way, the
  // assembler's resource report included.
  absl::StatusOr<CompiledKernel> Compile(const KernelKey& key, std::string* log = nullptr) const;

 private:
  NvrtcCompiler(const Nvrtc& nvrtc, absl::Span<const KernelSource> sources,
                absl::Span<const absl::string_view> main_sources, absl::Span<const std::string> macros);

  const Nvrtc* nvrtc_;
  absl::Span<const KernelSource> sources_;
  std::string program_;
  std::string compiler_;
  Digest digest_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_JIT_NVRTC_COMPILER_H_
