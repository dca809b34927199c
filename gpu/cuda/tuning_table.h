// SPDX-License-Identifier: Apache-2.0
// Tiles that measurement found faster than those that the model of gemm_config.cc prefers. Data: made from a sweep of
// tests/device/gpu_bench on the named GPU; a shape that is not in here goes by the model.
#ifndef GEMMD_GPU_CUDA_TUNING_TABLE_H_
#define GEMMD_GPU_CUDA_TUNING_TABLE_H_

#include "gpu/cuda/gemm_config.h"

namespace gemmd {

// The measured choice for the shape, or null. Entries hold for dense 1D2D products with BF16 output, for all row counts
// with the same next power of two, on GPUs with as many SMs as the one that was measured.
const TileChoice* FindTuned(const GemmShape& shape, int sms);

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_TUNING_TABLE_H_
