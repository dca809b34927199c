// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what TMA needs to know of a tensor and of the boxes that it moves. A map is a pure function of its
// description, so it can be kept for as long as one likes. Not thread-safe.
#ifndef GEMMD_GPU_CUDA_TENSOR_MAP_H_
#define GEMMD_GPU_CUDA_TENSOR_MAP_H_

#include "gpu/cuda/driver.h"
#include "gpu/cuda/gemm_call.h"
#include "gpu/kernels/kernel_args.h"

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

#include <cstdint>

namespace gemmd {

struct TensorMapSpec {
  CUtensorMapDataType dtype = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  int element_bytes = 1;
  MatrixView matrix;
  int box_rows = 0;
  int box_columns = 0;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;

  template <typename H>
  friend H AbslHashValue(H h, const TensorMapSpec& s) {
    return H::combine(std::move(h), s.dtype, s.matrix.data, s.matrix.batches, s.matrix.rows, s.matrix.columns,
                      s.matrix.batch_stride, s.matrix.row_stride, s.box_rows, s.box_columns, s.swizzle);
  }
  bool operator==(const TensorMapSpec& other) const;
};

class TensorMapCache {
 public:
  explicit TensorMapCache(const Driver& driver) : driver_(driver) {}

  // Writes the map to `*map`. Errors: INVALID_ARGUMENT where the tensor is not one that TMA takes (alignment).
  absl::Status Get(const TensorMapSpec& spec, TensorMap* map);

 private:
  static constexpr size_t kLimit = 8192;  // 1.5 MiB; beyond that all are forgotten and made again, 1 us each.

  const Driver& driver_;
  absl::flat_hash_map<TensorMapSpec, TensorMap> maps_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_TENSOR_MAP_H_
