// SPDX-License-Identifier: Apache-2.0
// One quantization on the GPU, compared bit by bit with the same on the host, guard zones included. Used by the
// correctness grid and the test of the C interface, one thread, one device.
#ifndef GEMMD_TESTS_DEVICE_QUANTIZE_CHECK_H_
#define GEMMD_TESTS_DEVICE_QUANTIZE_CHECK_H_

#include "gpu/cuda/gemm_launcher.h"
#include "tests/device/gpu_workbench.h"

#include "absl/status/status.h"

#include <cstdint>
#include <functional>
#include <string>

namespace gemmd {

struct QuantizeCase {
  QuantizeInput input = QuantizeInput::kBf16;
  QuantizeShape shape = QuantizeShape::kRow;
  int64_t m = 0;
  int64_t k = 0;
  int64_t padding = 0;      // Elements between rows of x and q beyond what ends them on 16 bytes; a multiple of 16.
  bool sf_m_major = false;  // QuantizeShape::kRow only.
  uint64_t seed = 1;
  std::string Name() const;
};

// `run` quantizes, and returns when that is done. What is wrong in words; empty: nothing.
std::string CheckQuantize(const QuantizeCase& quantize, TestKernels& kernels,
                          const std::function<absl::Status(const QuantizeArgs&)>& run);

}  // namespace gemmd

#endif  // GEMMD_TESTS_DEVICE_QUANTIZE_CHECK_H_
