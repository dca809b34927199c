// SPDX-License-Identifier: Apache-2.0
#include "gpu/batch_key.h"

namespace gemmd {
namespace {

BatchKey::Weights WeightsOf(const Operand& operand) { return {operand.region, operand.offset, operand.strides}; }

bool IsMMajor(const Operand& operand) {
  return operand.present() && operand.strides[static_cast<size_t>(operand.rank) - 1] != 1;
}

}  // namespace

std::optional<BatchKey> BatchKeyOf(const Gemm& gemm) {
  if (gemm.op != Op::kDense && gemm.op != Op::kMGroupedContiguous && gemm.op != Op::kMGroupedMasked) {
    return std::nullopt;
  }
  if (gemm.masked_on_device) return std::nullopt;
  return BatchKey{.op = gemm.op,
                  .scaling = gemm.scaling,
                  .accumulate = gemm.accumulate,
                  .sfa_m_major = IsMMajor(gemm.operand(OperandIndex::kSfa)),
                  .a_dtype = gemm.operand(OperandIndex::kA).dtype,
                  .b_dtype = gemm.operand(OperandIndex::kB).dtype,
                  .d_dtype = gemm.operand(OperandIndex::kD).dtype,
                  .n = gemm.n,
                  .k = gemm.k,
                  .groups = gemm.groups,
                  .b = WeightsOf(gemm.operand(OperandIndex::kB)),
                  .sfb = WeightsOf(gemm.operand(OperandIndex::kSfb))};
}

int64_t RowsOf(const Gemm& gemm) {
  if (gemm.op != Op::kMGroupedMasked) return gemm.m;
  int64_t rows = 0;
  for (const RowSegment& segment : gemm.segments) rows += segment.end - segment.begin;
  return rows;
}

}  // namespace gemmd
