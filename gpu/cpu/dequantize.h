// SPDX-License-Identifier: Apache-2.0
// Runs of elements to and from float, for the panels of the CPU's products. Each function gives the same bits as
// element by element with proto/element_type.h, whatever the instruction set. Pure functions; any thread.
#ifndef GEMMD_GPU_CPU_DEQUANTIZE_H_
#define GEMMD_GPU_CPU_DEQUANTIZE_H_

#include "gpu/cpu/instruction_set.h"

#include <cstdint>

namespace gemmd {

// out[i] = E4m3ToFloat(in[i]) * sf.
void DequantizeE4m3(InstructionSet set, const uint8_t* in, int64_t count, float sf, float* out);

// out[i] = Bf16ToFloat(in[i]).
void WidenBf16(InstructionSet set, const uint16_t* in, int64_t count, float* out);

// out[i] = FloatToBf16(in[i]).
void NarrowToBf16(InstructionSet set, const float* in, int64_t count, uint16_t* out);

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_DEQUANTIZE_H_
