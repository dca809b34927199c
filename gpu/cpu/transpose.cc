// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/transpose.h"

#include <algorithm>

namespace gemmd {
namespace {

// Rows of the source that are read before the next rows of the result are begun: a tile of 64x64 fits the first cache.
constexpr int64_t kTileColumns = 64;

template <typename Element>
void Transpose(const HostMatrix& from, const HostMatrix& to, int64_t begin, int64_t end) {
  for (int64_t first = 0; first < from.rows; first += kTileColumns) {
    const int64_t last = std::min(first + kTileColumns, from.rows);
    for (int64_t row = begin; row < end; ++row) {
      const auto* in = reinterpret_cast<const Element*>(from.At(first, row));
      auto* out = reinterpret_cast<Element*>(to.At(row, first));
      for (int64_t column = 0; column < last - first; ++column) out[column] = in[column * from.row_stride];
    }
  }
}

}  // namespace

void TransposeStripe(const HostMatrix& from, const HostMatrix& to, int64_t stripe) {
  const int64_t begin = stripe * kTransposeRows;
  const int64_t end = std::min(begin + kTransposeRows, to.rows);
  switch (ByteSize(from.dtype)) {
    case 1:
      return Transpose<uint8_t>(from, to, begin, end);
    case 2:
      return Transpose<uint16_t>(from, to, begin, end);
    default:
      return Transpose<uint32_t>(from, to, begin, end);
  }
}

}  // namespace gemmd
