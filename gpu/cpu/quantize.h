// SPDX-License-Identifier: Apache-2.0
// Blocks of X to e4m3 and a scale factor, by the rule of gemmd.v1.Quantize: sf = amax / 448, q = FloatToE4m3(x / sf).
// Blocks of zeros, and blocks so small that amax / 448 is zero, get sf = 1 (and so zeros). NaN stays NaN and does not
// count for amax. An infinity does: sf is infinite, and every element of that block dequantizes to NaN, so that an
// overflow is seen in the product rather than saturated away. The GPU's kernels follow the same rule.
// Pure functions; any thread; the same bits whatever the instruction set.
#ifndef GEMMD_GPU_CPU_QUANTIZE_H_
#define GEMMD_GPU_CPU_QUANTIZE_H_

#include "gpu/cpu/host_matrix.h"
#include "gpu/cpu/instruction_set.h"

#include <cstdint>

namespace gemmd {

// x [M,K] BF16 or F32 to q [M,K] E4M3 and sf [ceil(M/block_rows), ceil(K/128)] F32. block_rows is 1 or 128.
struct QuantizeViews {
  HostMatrix x;
  HostMatrix q;
  HostMatrix sf;
  int64_t block_rows = 1;
};

// Quantizes the blocks of one row of `sf`.
void QuantizeBlockRow(InstructionSet set, const QuantizeViews& views, int64_t sf_row);

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_QUANTIZE_H_
