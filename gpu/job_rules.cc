// SPDX-License-Identifier: Apache-2.0
#include "gpu/job_rules.h"

#include "gpu/job_check.h"

namespace gemmd {
namespace {

constexpr DTypeSet kE4m3 = SetOf(DType::kE4m3);
constexpr DTypeSet kBf16 = SetOf(DType::kBf16);
constexpr DTypeSet kF32 = SetOf(DType::kF32);
constexpr DTypeSet kI32 = SetOf(DType::kI32);
constexpr DTypeSet kI64 = SetOf(DType::kI64);
constexpr DTypeSet kU8 = SetOf(DType::kU8);

bool IsGrouped(Op op) { return op == Op::kMGroupedContiguous || op == Op::kMGroupedMasked || op == Op::kKGrouped; }

Reason UnknownValue(JobField field, int64_t got) { return {.field = field, .rule = Rule::kUnknownValue, .got = got}; }

Reason Unexpected(JobField field) { return {.field = field, .rule = Rule::kUnexpected}; }

Reason CheckFlags(const JobDescriptor& job) {
  if ((job.flags & ~kFlagAccumulate) != 0) return UnknownValue(JobField::kFlags, job.flags);
  const bool may_accumulate = job.op == Op::kDense || job.op == Op::kKGrouped;
  if (job.flags != 0 && !may_accumulate) return Unexpected(JobField::kFlags);
  return {};
}

Reason CheckScaling(const JobDescriptor& job) {
  if (job.op == Op::kQuantize || job.op == Op::kCopy || job.op == Op::kTranspose) {
    return job.scaling == Scaling::kUnset ? Reason{} : Unexpected(JobField::kScaling);
  }
  switch (job.scaling) {
    case Scaling::kUnset:
      return {.field = JobField::kScaling, .rule = Rule::kMissing};
    case Scaling::kNone:
      return {};
    case Scaling::k1D2D:
      if (job.op != Op::kKGrouped) return {};
      break;
    case Scaling::k1D1D:
      if (job.op == Op::kDense || job.op == Op::kKGrouped) return {};
      break;
  }
  return UnknownValue(JobField::kScaling, static_cast<int64_t>(job.scaling));
}

bool IsEncodingOf(Op op, GroupEncoding encoding) {
  switch (encoding) {
    case GroupEncoding::kNone:
      return !IsGrouped(op);
    case GroupEncoding::kOffsets:
    case GroupEncoding::kRowIndex:
    case GroupEncoding::kAlignedEnds:
      return op == Op::kMGroupedContiguous;
    case GroupEncoding::kMasked:
      return op == Op::kMGroupedMasked;
    case GroupEncoding::kKSizes:
      return op == Op::kKGrouped;
  }
  return false;
}

Reason CheckGroupEncoding(const JobDescriptor& job) {
  if (!IsEncodingOf(job.op, job.group_encoding)) {
    if (!IsGrouped(job.op)) return Unexpected(JobField::kGroupEncoding);
    if (job.group_encoding == GroupEncoding::kNone) return {.field = JobField::kGroupEncoding, .rule = Rule::kMissing};
    return UnknownValue(JobField::kGroupEncoding, static_cast<int64_t>(job.group_encoding));
  }
  if (job.group_alignment != 0 && job.group_encoding != GroupEncoding::kAlignedEnds) {
    return Unexpected(JobField::kGroupAlignment);
  }
  if (job.group_alignment > kMaxGroupAlignment) {
    return {.field = JobField::kGroupAlignment,
            .rule = Rule::kUnknownValue,
            .expected = kMaxGroupAlignment,
            .got = job.group_alignment};
  }
  return {};
}

Reason CheckQuantizeBlock(const JobDescriptor& job) {
  const QuantizeBlock block = job.quantize_block;
  if (job.op != Op::kQuantize) {
    return block == QuantizeBlock::kUnset ? Reason{} : Unexpected(JobField::kQuantizeBlock);
  }
  if (block == QuantizeBlock::kUnset) return {.field = JobField::kQuantizeBlock, .rule = Rule::kMissing};
  if (block == QuantizeBlock::k1x128 || block == QuantizeBlock::k128x128) return {};
  return UnknownValue(JobField::kQuantizeBlock, static_cast<int64_t>(block));
}

OperationRules QuantizeRules(const JobDescriptor& job) {
  OperationRules rules;
  const bool rows = job.quantize_block == QuantizeBlock::k1x128;
  rules.operand(OperandIndex::kA) = {true, kBf16 | kF32, 2, Layout::kMatrix};
  rules.operand(OperandIndex::kD) = {true, kE4m3, 2, Layout::kMatrix};
  rules.operand(OperandIndex::kSfd) = {true, kF32, 2, rows ? Layout::kScaleRows : Layout::kScaleBlocks};
  return rules;
}

OperationRules CopyRules() {
  OperationRules rules;
  rules.operand(OperandIndex::kA) = {true, kU8, 1, Layout::kBytes};
  rules.operand(OperandIndex::kD) = {true, kU8, 1, Layout::kBytes};
  return rules;
}

OperationRules TransposeRules(const JobDescriptor& job) {
  OperationRules rules;
  const DType dtype = job.operand(OperandIndex::kA).dtype;
  // One that is not in the set is refused at A, before D is looked at.
  const DTypeSet same = dtype <= DType::kU8 ? SetOf(dtype) : 0;
  rules.operand(OperandIndex::kA) = {true, kE4m3 | kBf16 | kF32, 2, Layout::kElements};
  rules.operand(OperandIndex::kD) = {true, same, 2, Layout::kElements};
  return rules;
}

OperationRules KGroupedRules(const JobDescriptor& job) {
  OperationRules rules;
  const bool fp8 = job.scaling != Scaling::kNone;
  rules.operand(OperandIndex::kA) = {true, fp8 ? kE4m3 : kBf16, 1, Layout::kFlat};
  rules.operand(OperandIndex::kB) = {true, fp8 ? kE4m3 : kBf16, 1, Layout::kFlat};
  rules.operand(OperandIndex::kSfa) = {fp8, kF32, 2, Layout::kScaleRows};
  rules.operand(OperandIndex::kSfb) = {fp8, kF32, 2, Layout::kScaleRows};
  rules.operand(OperandIndex::kD) = {true, kF32, 3, Layout::kMatrix};
  rules.operand(OperandIndex::kGroups) = {true, kI32 | kI64, 1, Layout::kGroupArray};
  return rules;
}

DTypeSet GroupArrayDTypes(GroupEncoding encoding) { return encoding == GroupEncoding::kOffsets ? kI32 | kI64 : kI32; }

// Dense and both m-grouped operations.
OperationRules ProductRules(const JobDescriptor& job) {
  OperationRules rules;
  const bool fp8 = job.scaling != Scaling::kNone;
  const bool dense = job.op == Op::kDense;
  const uint8_t rank_a = job.op == Op::kMGroupedMasked ? 3 : 2;
  const uint8_t rank_b = dense ? 2 : 3;
  // A in BF16 under an FP8 scaling is quantized on the fly, so it brings no scale factors.
  const bool takes_sfa = fp8 && job.operand(OperandIndex::kA).dtype != DType::kBf16;
  rules.operand(OperandIndex::kA) = {true, fp8 ? kE4m3 | kBf16 : kBf16, rank_a, Layout::kMatrix};
  rules.operand(OperandIndex::kSfa) = {takes_sfa, kF32, rank_a, Layout::kScaleRows};
  rules.operand(OperandIndex::kB) = {true, fp8 ? kE4m3 : kBf16, rank_b, Layout::kMatrix};
  rules.operand(OperandIndex::kSfb) = {fp8, kF32, rank_b,
                                       job.scaling == Scaling::k1D1D ? Layout::kScaleRows : Layout::kScaleBlocks};
  DTypeSet d_dtypes = dense || !fp8 ? kBf16 | kF32 : kBf16;
  if ((job.flags & kFlagAccumulate) != 0) d_dtypes = kF32;
  rules.operand(OperandIndex::kD) = {true, d_dtypes, rank_a, Layout::kMatrix};
  rules.operand(OperandIndex::kGroups) = {!dense, GroupArrayDTypes(job.group_encoding), 1, Layout::kGroupArray};
  return rules;
}

}  // namespace

Reason CheckHeader(const JobDescriptor& job) {
  const bool known = (job.op >= Op::kDense && job.op <= Op::kCopy) || job.op == Op::kTranspose;
  if (!known) return UnknownValue(JobField::kOp, static_cast<int64_t>(job.op));
  if (const Reason reason = CheckFlags(job); reason.rule != Rule::kNone) return reason;
  if (job.priority > kMaxPriority) {
    return {.field = JobField::kPriority, .rule = Rule::kUnknownValue, .expected = kMaxPriority, .got = job.priority};
  }
  if (const Reason reason = CheckScaling(job); reason.rule != Rule::kNone) return reason;
  if (const Reason reason = CheckGroupEncoding(job); reason.rule != Rule::kNone) return reason;
  return CheckQuantizeBlock(job);
}

OperationRules RulesOf(const JobDescriptor& job) {
  if (job.op == Op::kQuantize) return QuantizeRules(job);
  if (job.op == Op::kCopy) return CopyRules();
  if (job.op == Op::kTranspose) return TransposeRules(job);
  if (job.op == Op::kKGrouped) return KGroupedRules(job);
  return ProductRules(job);
}

}  // namespace gemmd
