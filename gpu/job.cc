// SPDX-License-Identifier: Apache-2.0
#include "gpu/job.h"

namespace gemmd {

double Flops(const Gemm& gemm) {
  const double column_flops = 2.0 * static_cast<double>(gemm.n) * static_cast<double>(gemm.k);
  switch (gemm.op) {
    case Op::kDense:
    case Op::kKGrouped:
      return column_flops * static_cast<double>(gemm.m);
    case Op::kMGroupedContiguous:
    case Op::kMGroupedMasked: {
      double rows = 0;
      for (const RowSegment& segment : gemm.segments) rows += static_cast<double>(segment.end - segment.begin);
      return column_flops * rows;
    }
    case Op::kNone:
    case Op::kQuantize:
    case Op::kCopy:
    case Op::kCancel:
    case Op::kTranspose:
      break;
  }
  return 0;
}

}  // namespace gemmd
