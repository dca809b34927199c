// SPDX-License-Identifier: Apache-2.0
// A matrix with its rows and columns exchanged, in stripes that threads share. Pure; any thread.
#ifndef GEMMD_GPU_CPU_TRANSPOSE_H_
#define GEMMD_GPU_CPU_TRANSPOSE_H_

#include "gpu/cpu/host_matrix.h"

#include <cstdint>

namespace gemmd {

// Rows of the result in one stripe: as many elements as a cache line or a few have, so that what is read of a row of
// the source is used whole.
inline constexpr int64_t kTransposeRows = 64;

// Writes rows [stripe * kTransposeRows, ...) of `to` [C,R] from columns of `from` [R,C]. Requires: equal types of 1, 2
// or 4 bytes; column strides of 1.
void TransposeStripe(const HostMatrix& from, const HostMatrix& to, int64_t stripe);

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_TRANSPOSE_H_
