// SPDX-License-Identifier: Apache-2.0
// What the C interface of gemmd_kernels.h takes: every field is checked before anything starts, so that a mistake of a
// caller in another language is a message and not a wrong kernel. Pure; no GPU is touched.
#ifndef GEMMD_TESTS_BENCH_KERNELS_ARGUMENTS_H_
#define GEMMD_TESTS_BENCH_KERNELS_ARGUMENTS_H_

#include "tests/bench/gemmd_kernels.h"

#include "absl/status/status.h"

#include <cstdint>

namespace gemmd {

// Each: the first field that does not fit, as INVALID_ARGUMENT "field: expected ..., got ...". Costs the launch that is
// timed a few comparisons. Pointers may be null: that is a mistake as any other.
absl::Status CheckProduct(const GemmdProduct* product);
absl::Status CheckMaskedProduct(const GemmdProduct* product, const int32_t* masked_m, const int32_t* rows);
absl::Status CheckKGroupedProduct(const GemmdKGroupedProduct* product);
absl::Status CheckQuantization(const GemmdQuantization* quantization);

}  // namespace gemmd

#endif  // GEMMD_TESTS_BENCH_KERNELS_ARGUMENTS_H_
