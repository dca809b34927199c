// SPDX-License-Identifier: Apache-2.0
// What jobs must have in common to share a launch. A value; used by the batcher.
#ifndef GEMMD_GPU_BATCH_KEY_H_
#define GEMMD_GPU_BATCH_KEY_H_

#include "gpu/job.h"

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

namespace gemmd {

// Everything about a job but its rows: the operation, the weights (same bytes in the same layout) and the kind of
// everything else. Jobs with equal keys may share a launch.
struct BatchKey {
  struct Weights {
    uint64_t region = 0;
    uint64_t offset = 0;
    std::array<int64_t, kMaxRank> strides{};

    friend bool operator==(const Weights&, const Weights&) = default;
    template <typename H>
    friend H AbslHashValue(H h, const Weights& w) {
      return H::combine(std::move(h), w.region, w.offset, w.strides);
    }
  };

  Op op = Op::kNone;
  Scaling scaling = Scaling::kUnset;
  bool accumulate = false;
  bool sfa_m_major = false;
  DType a_dtype = DType::kNone;
  DType b_dtype = DType::kNone;
  DType d_dtype = DType::kNone;
  int64_t n = 0;
  int64_t k = 0;
  int64_t groups = 0;
  Weights b;
  Weights sfb;

  friend bool operator==(const BatchKey&, const BatchKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const BatchKey& key) {
    return H::combine(std::move(h), key.op, key.scaling, key.accumulate, key.sfa_m_major, key.a_dtype, key.b_dtype,
                      key.d_dtype, key.n, key.k, key.groups, key.b, key.sfb);
  }
};

// None for operations that never merge: k-grouped, quantize, copy, transpose, and masked ones whose rows only the
// device knows (Worker reads them where jobs must wait).
std::optional<BatchKey> BatchKeyOf(const Gemm& gemm);

// Rows of A that the job multiplies: what it adds to a merged launch.
int64_t RowsOf(const Gemm& gemm);

}  // namespace gemmd

#endif  // GEMMD_GPU_BATCH_KEY_H_
