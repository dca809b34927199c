// SPDX-License-Identifier: Apache-2.0
// Strided looks on host memory, as the CPU's operations use them. They own nothing.
#ifndef GEMMD_GPU_CPU_HOST_MATRIX_H_
#define GEMMD_GPU_CPU_HOST_MATRIX_H_

#include "proto/element_type.h"

#include <cstddef>
#include <cstdint>

namespace gemmd {

constexpr int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Strides count elements. Matrices have column_stride 1; scale factors may be M-major (row_stride 1).
struct HostMatrix {
  std::byte* data = nullptr;
  DType dtype = DType::kNone;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;

  bool present() const { return data != nullptr; }

  std::byte* At(int64_t row, int64_t column) const {
    return data + (row * row_stride + column * column_stride) * ByteSize(dtype);
  }

  HostMatrix Window(int64_t row, int64_t row_count, int64_t column, int64_t column_count) const {
    HostMatrix window = *this;
    window.data = At(row, column);
    window.rows = row_count;
    window.columns = column_count;
    return window;
  }
};

// Elements with their scale factors: one F32 for `sf_rows` rows and 128 columns. No scale factors if sf is absent.
struct ScaledView {
  HostMatrix values;
  HostMatrix sf;
  int64_t sf_rows = 1;

  float ScaleOf(int64_t row, int64_t k_block) const {
    return *reinterpret_cast<const float*>(sf.At(row / sf_rows, k_block));
  }
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_HOST_MATRIX_H_
