// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/injected_fault.h"

#include "gpu/cuda_status.h"
#include "gpu/jit/nvrtc_compiler.h"

#include "absl/status/statusor.h"

namespace gemmd {
namespace {

constexpr KernelSource kSource = {"injected_fault.cuh", R"(
template <bool kHang>
__global__ void InjectedFault(int* nowhere) {
  if (!kHang) *nowhere = 1;
  while (kHang) asm volatile("nanosleep.u32 1000;");
}
)"};

}  // namespace

absl::Status LaunchFault(DeviceFault fault, cudaStream_t stream) {
  const absl::StatusOr<NvrtcCompiler> compiler =
      NvrtcCompiler::Create(absl::MakeConstSpan(&kSource, 1), {kSource.name});
  if (!compiler.ok()) return compiler.status();
  const absl::StatusOr<CompiledKernel> kernel =
      compiler->Compile(compiler->KeyOf(fault == DeviceFault::kHang ? "InjectedFault<true>" : "InjectedFault<false>"));
  if (!kernel.ok()) return kernel.status();
  cudaLibrary_t library = nullptr;
  absl::Status status =
      CudaStatus(cudaLibraryLoadData(&library, kernel->cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                 "loading a kernel");
  if (!status.ok()) return status;
  cudaKernel_t function = nullptr;
  status = CudaStatus(cudaLibraryGetKernel(&function, library, kernel->symbol.c_str()), "finding a kernel");
  if (!status.ok()) return status;
  void* nowhere = nullptr;
  void* parameters[] = {&nowhere};
  // The library stays loaded: its kernel runs, and the process will not live long.
  return CudaStatus(cudaLaunchKernel(reinterpret_cast<const void*>(function), dim3(1), dim3(1), parameters, 0, stream),
                    "launching");
}

}  // namespace gemmd
