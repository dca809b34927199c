// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/nvrtc.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include <dlfcn.h>

namespace gemmd {
namespace {

// The newest first. Those without a version number are links that only a toolkit has.
constexpr const char* kNames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so",
                                  "/usr/local/cuda/lib64/libnvrtc.so"};

absl::StatusOr<void*> OpenLibrary() {
  std::string errors;
  for (const char* name : kNames) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL); library != nullptr) return library;
    absl::StrAppend(&errors, errors.empty() ? "" : "; ", dlerror());
  }
  return absl::FailedPreconditionError(
      absl::StrCat("NVRTC, the CUDA run-time compiler, is not installed (package nvidia-cuda-nvrtc of PyPI or "
                   "cuda-nvrtc of NVIDIA; its folder in LD_LIBRARY_PATH): ",
                   errors));
}

template <typename Function>
absl::Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("this NVRTC has no ", name));
}

absl::StatusOr<Nvrtc> LoadFunctions() {
  const absl::StatusOr<void*> library = OpenLibrary();
  if (!library.ok()) return library.status();
  Nvrtc nvrtc;
  absl::Status status;
  status.Update(Find(*library, "nvrtcVersion", &nvrtc.version));
  status.Update(Find(*library, "nvrtcGetErrorString", &nvrtc.get_error_string));
  status.Update(Find(*library, "nvrtcCreateProgram", &nvrtc.create_program));
  status.Update(Find(*library, "nvrtcDestroyProgram", &nvrtc.destroy_program));
  status.Update(Find(*library, "nvrtcAddNameExpression", &nvrtc.add_name_expression));
  status.Update(Find(*library, "nvrtcCompileProgram", &nvrtc.compile_program));
  status.Update(Find(*library, "nvrtcGetProgramLogSize", &nvrtc.get_program_log_size));
  status.Update(Find(*library, "nvrtcGetProgramLog", &nvrtc.get_program_log));
  status.Update(Find(*library, "nvrtcGetLoweredName", &nvrtc.get_lowered_name));
  status.Update(Find(*library, "nvrtcGetCUBINSize", &nvrtc.get_cubin_size));
  status.Update(Find(*library, "nvrtcGetCUBIN", &nvrtc.get_cubin));
  if (!status.ok()) return status;
  return nvrtc;
}

}  // namespace

absl::StatusOr<const Nvrtc*> Nvrtc::Load() {
  static const absl::StatusOr<Nvrtc>& loaded = *new absl::StatusOr<Nvrtc>(LoadFunctions());
  if (!loaded.ok()) return loaded.status();
  return &*loaded;
}

}  // namespace gemmd
