// SPDX-License-Identifier: Apache-2.0
// The functions of NVRTC, found at run time: programs start, and a CPU worker runs, on machines without it; and one
// binary takes the NVRTC of CUDA 12 as well as that of CUDA 13.
#ifndef GEMMD_GPU_JIT_NVRTC_H_
#define GEMMD_GPU_JIT_NVRTC_H_

#include "absl/status/statusor.h"
#include <nvrtc.h>

namespace gemmd {

struct Nvrtc {
  decltype(&nvrtcVersion) version = nullptr;
  decltype(&nvrtcGetErrorString) get_error_string = nullptr;
  decltype(&nvrtcCreateProgram) create_program = nullptr;
  decltype(&nvrtcDestroyProgram) destroy_program = nullptr;
  decltype(&nvrtcAddNameExpression) add_name_expression = nullptr;
  decltype(&nvrtcCompileProgram) compile_program = nullptr;
  decltype(&nvrtcGetProgramLogSize) get_program_log_size = nullptr;
  decltype(&nvrtcGetProgramLog) get_program_log = nullptr;
  decltype(&nvrtcGetLoweredName) get_lowered_name = nullptr;
  decltype(&nvrtcGetCUBINSize) get_cubin_size = nullptr;
  decltype(&nvrtcGetCUBIN) get_cubin = nullptr;

  // The library, loaded once and never unloaded: where the dynamic linker looks (LD_LIBRARY_PATH among others), else in
  // /usr/local/cuda/lib64. Errors: FAILED_PRECONDITION if there is none or it lacks a function.
  static absl::StatusOr<const Nvrtc*> Load();
};

}  // namespace gemmd

#endif  // GEMMD_GPU_JIT_NVRTC_H_
