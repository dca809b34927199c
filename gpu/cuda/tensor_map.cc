// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/tensor_map.h"

#include "gpu/cuda_status.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cstring>

namespace gemmd {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));

bool TensorMapSpec::operator==(const TensorMapSpec& other) const {
  const MatrixView& a = matrix;
  const MatrixView& b = other.matrix;
  return dtype == other.dtype && a.data == b.data && a.batches == b.batches && a.rows == b.rows &&
         a.columns == b.columns && a.batch_stride == b.batch_stride && a.row_stride == b.row_stride &&
         box_rows == other.box_rows && box_columns == other.box_columns && swizzle == other.swizzle;
}

absl::Status TensorMapCache::Get(const TensorMapSpec& spec, TensorMap* map) {
  if (const auto found = maps_.find(spec); found != maps_.end()) {
    *map = found->second;
    return absl::OkStatus();
  }
  const MatrixView& matrix = spec.matrix;
  const uint64_t element = static_cast<uint64_t>(spec.element_bytes);
  const uint64_t row_bytes = static_cast<uint64_t>(matrix.row_stride) * element;
  // Empty tensors have no map; one element that nobody loads stands for them. A stride that is never used must be
  // legal.
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(std::max<int64_t>(matrix.columns, 1)),
                              static_cast<cuuint64_t>(std::max<int64_t>(matrix.rows, 1)),
                              static_cast<cuuint64_t>(std::max<int64_t>(matrix.batches, 1))};
  const cuuint64_t strides[2] = {
      std::max<uint64_t>(row_bytes, 16),
      matrix.batches > 1 ? static_cast<uint64_t>(matrix.batch_stride) * element : std::max<uint64_t>(row_bytes, 16)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(spec.box_columns), static_cast<cuuint32_t>(spec.box_rows), 1};
  const cuuint32_t element_strides[3] = {1, 1, 1};
  CUtensorMap encoded;
  const CUresult result = driver_.tensor_map_encode_tiled(
      &encoded, spec.dtype, 3, matrix.data, dims, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
      spec.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (absl::Status status = CudaStatus(result, "cuTensorMapEncodeTiled"); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(status.message(), ", [", dims[2], ", ", dims[1], ", ", dims[0], "] row pitch ",
                                     strides[0], " bytes, box [", box[1], ", ", box[0], "]"));
  }
  std::memcpy(map, &encoded, sizeof(*map));
  if (maps_.size() >= kLimit) maps_.clear();
  maps_.emplace(spec, *map);
  return absl::OkStatus();
}

}  // namespace gemmd
