// SPDX-License-Identifier: Apache-2.0
// Random operands for tests, demonstrations and load: normal values whose magnitude differs from block to block, as
// weights and activations do, so that a scale factor that is mixed up shows in the result. The same seed gives the same
// data on every machine and for every number of threads, so the operands of one product need different seeds: equal
// rows of A and B give elements of D that tower above all others. Pure functions; any thread.
#ifndef GEMMD_CLIENT_RANDOM_DATA_H_
#define GEMMD_CLIENT_RANDOM_DATA_H_

#include "proto/job.h"

#include "absl/types/span.h"

#include <cstdint>

namespace gemmd {

// Magnitudes of blocks lie between 2^-kMagnitudeSpread and 2^kMagnitudeSpread: enough to show a mixed-up scale factor,
// and small enough that rounding the largest elements of D to BF16 stays well inside reference::LimitsFor.
inline constexpr int kMagnitudeSpread = 1;

// Fills [rows, columns], contiguous. Sizes must fit.
void FillRandom(uint64_t seed, int64_t rows, int64_t columns, absl::Span<float> values);
void FillRandom(uint64_t seed, int64_t rows, int64_t columns, absl::Span<uint16_t> bf16_values);

// Fills [rows, columns] and the scale factors of `block` with what quantization of FillRandom's values gives.
// sf: [rows, ceil(columns/128)], or [ceil(rows/128), ceil(columns/128)] for 128x128; row-major.
void FillRandomQuantized(uint64_t seed, int64_t rows, int64_t columns, QuantizeBlock block, absl::Span<uint8_t> values,
                         absl::Span<float> sf);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_RANDOM_DATA_H_
