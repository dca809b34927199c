// SPDX-License-Identifier: Apache-2.0
#include "client/operations.h"

namespace gemmd {
namespace {

// An absent operand leaves its field unset.
#define GEMMD_SET(message, field, view) \
  if ((view).source != TensorView::Source::kNone) ToProto(view, (message)->mutable_##field())

// The operands that every product has.
template <typename Call, typename Message>
void SetOperands(const Call& call, Message* message) {
  message->set_scaling(static_cast<v1::Scaling>(call.scaling));
  GEMMD_SET(message, a, call.a);
  GEMMD_SET(message, sfa, call.sfa);
  GEMMD_SET(message, b, call.b);
  GEMMD_SET(message, sfb, call.sfb);
  GEMMD_SET(message, d, call.d);
}

}  // namespace

v1::RunRequest ToRequest(const DenseCall& call) {
  v1::RunRequest request;
  v1::Dense* message = request.mutable_dense();
  SetOperands(call, message);
  message->set_accumulate(call.accumulate);
  return request;
}

v1::RunRequest ToRequest(const MGroupedContiguousCall& call) {
  v1::RunRequest request;
  v1::MGroupedContiguous* message = request.mutable_m_grouped_contiguous();
  SetOperands(call, message);
  v1::RowGroups* groups = message->mutable_row_groups();
  groups->set_alignment(call.alignment);
  switch (call.encoding) {
    case GroupEncoding::kOffsets:
      ToProto(call.groups, groups->mutable_offsets());
      break;
    case GroupEncoding::kRowIndex:
      ToProto(call.groups, groups->mutable_row_index());
      break;
    case GroupEncoding::kAlignedEnds:
      ToProto(call.groups, groups->mutable_aligned_ends());
      break;
    case GroupEncoding::kNone:
    case GroupEncoding::kMasked:
    case GroupEncoding::kKSizes:
      break;  // Left unset: the daemon says what is missing.
  }
  return request;
}

v1::RunRequest ToRequest(const MGroupedMaskedCall& call) {
  v1::RunRequest request;
  v1::MGroupedMasked* message = request.mutable_m_grouped_masked();
  SetOperands(call, message);
  GEMMD_SET(message, masked_m, call.masked_m);
  return request;
}

v1::RunRequest ToRequest(const KGroupedCall& call) {
  v1::RunRequest request;
  v1::KGrouped* message = request.mutable_k_grouped();
  SetOperands(call, message);
  GEMMD_SET(message, ks, call.ks);
  message->set_accumulate(call.accumulate);
  return request;
}

v1::RunRequest ToRequest(const QuantizeCall& call) {
  v1::RunRequest request;
  v1::Quantize* message = request.mutable_quantize();
  message->set_block(static_cast<v1::Quantize::Block>(call.block));
  GEMMD_SET(message, x, call.x);
  GEMMD_SET(message, q, call.q);
  GEMMD_SET(message, sf, call.sf);
  return request;
}

#undef GEMMD_SET

}  // namespace gemmd
