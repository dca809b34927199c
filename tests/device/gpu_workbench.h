// SPDX-License-Identifier: Apache-2.0
// Operands in device memory for one product: random contents, guard zones around D, an FP64 check. Used by the
// correctness grid and the benchmark, one thread, one device.
#ifndef GEMMD_TESTS_DEVICE_GPU_WORKBENCH_H_
#define GEMMD_TESTS_DEVICE_GPU_WORKBENCH_H_

#include "gpu/cuda/gemm_call.h"
#include "gpu/jit/nvrtc_compiler.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {

// Ends the program with a message if a CUDA call failed.
void Must(cudaError_t error, const char* what);

class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t byte_size);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  unsigned char* data() const { return data_; }
  int64_t byte_size() const { return byte_size_; }

 private:
  unsigned char* data_ = nullptr;
  int64_t byte_size_;
};

class TestKernels {
 public:
  TestKernels();
  void Launch(const char* name, int64_t work, void** parameters);

 private:
  std::map<std::string, cudaKernel_t> kernels_;
  std::vector<cudaLibrary_t> libraries_;
};

// What to multiply.
struct Product {
  std::string kind = "dense";  // dense, contiguous, masked, kgrouped.
  KernelScaling scaling = KernelScaling::kRowBlock;
  KernelOutput output = KernelOutput::kBf16;
  int64_t m = 0;  // Dense, kgrouped: rows. Masked: M_max.
  int64_t n = 0;
  int64_t k = 0;
  std::vector<int64_t> groups;  // Rows of each group; kgrouped: K of each.
  bool sfa_m_major = false;
  bool sfb_m_major = false;  // 1D1D only.
  int64_t d_padding = 0;     // Elements between rows of D.
  uint64_t seed = 1;
  std::string Name() const;
};

struct CheckOutcome {
  double frobenius = 0;     // ||D - ref|| / ||ref||
  double largest = 0;       // max |D - ref| / RMS(ref)
  uint64_t not_finite = 0;  // Elements never written, or NaN.
  uint64_t outside = 0;     // Bytes changed outside D, and outside what completes its rows to 16 bytes.
  bool ok = false;
};

class Workbench {
 public:
  Workbench(const Product& product, TestKernels& kernels);
  const GemmCall& call() const { return call_; }
  // Fills D and its guard zones with NaNs (or, when accumulating, with numbers).
  void ResetOutput();
  // Compares every `row_step`-th row with FP64.
  CheckOutcome Check(int row_step);
  // Bytes in which D, with all around it but what completes its rows to 16 bytes, differs from what Keep() kept.
  uint64_t DifferencesFromKept();
  void Keep();
  double flops() const;
  int64_t bytes() const;

 private:
  float* MakeScales(int64_t batches, int64_t rows, int64_t blocks, bool m_major, uint64_t seed, ScaleView* view);
  uint64_t BytesOutside();
  int ElementBytes() const { return call_.output == KernelOutput::kBf16 ? 2 : 4; }  // Of D.

  Product product_;
  TestKernels& kernels_;
  GemmCall call_;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
  std::unique_ptr<DeviceBuffer> output_;
  std::unique_ptr<DeviceBuffer> before_;
  std::unique_ptr<DeviceBuffer> kept_;
};

}  // namespace gemmd

#endif  // GEMMD_TESTS_DEVICE_GPU_WORKBENCH_H_
