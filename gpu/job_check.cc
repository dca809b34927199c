// SPDX-License-Identifier: Apache-2.0
#include "gpu/job_check.h"

#include "gpu/device.h"
#include "gpu/job_rules.h"
#include "gpu/memory_window.h"
#include "gpu/row_groups.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

// Offsets, extents and strides are at most 2^64, 2^40 and 2^40, so no sum or product below overflows it.
__extension__ typedef __int128 Wide;

constexpr int64_t kMatrixAlignment = 16;  // Bytes: what TMA takes.

using Extents = std::array<int64_t, kMaxRank>;

bool Failed(const Reason& reason) { return reason.rule != Rule::kNone; }

JobField FieldOf(OperandIndex index) {
  return static_cast<JobField>(static_cast<int>(JobField::kA) + static_cast<int>(index));
}

int64_t Clamp(Wide value) {
  constexpr Wide kMost = std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(std::min(value, kMost));
}

int64_t CeilDiv(int64_t value, int64_t divisor) { return value / divisor + (value % divisor != 0 ? 1 : 0); }

// Copies the array out of shared memory once; everything after works on the copy.
absl::StatusOr<std::vector<int64_t>> ReadGroupArray(const Operand& groups) {
  std::vector<int64_t> values(static_cast<size_t>(groups.shape[0]));
  if (values.empty()) return values;
  const uint64_t byte_size = values.size() * static_cast<uint64_t>(ByteSize(groups.dtype));
  std::vector<int32_t> narrow(groups.dtype == DType::kI32 ? values.size() : 0);
  void* const destination = narrow.empty() ? static_cast<void*>(values.data()) : narrow.data();
  if (absl::Status status = groups.memory->ReadBytes(groups.offset, byte_size, destination); !status.ok())
    return status;
  std::copy(narrow.begin(), narrow.end(), values.begin());
  return values;
}

// One job's way through the rules. Each step may rely on those before it.
class Check {
 public:
  Check(const JobDescriptor& job, RegionLookup find_region) : job_(job), find_region_(find_region) {}

  Reason Run() {
    if (const Reason reason = CheckHeader(job_); Failed(reason)) return reason;
    rules_ = RulesOf(job_);
    for (const auto step : {&Check::CheckPresence, &Check::CheckTypes, &Check::CheckExtents, &Check::CheckLayouts,
                            &Check::Resolve, &Check::CheckOverlaps, &Check::CheckGroups}) {
      if (const Reason reason = (this->*step)(); Failed(reason)) return reason;
    }
    gemm_.op = job_.op;
    gemm_.scaling = job_.scaling;
    gemm_.quantize_block = job_.quantize_block;
    gemm_.accumulate = (job_.flags & kFlagAccumulate) != 0;
    return {};
  }

  Gemm TakeGemm() { return std::move(gemm_); }

 private:
  // Calls check(index, rule, operand) for each operand that the operation takes, until one fails.
  template <typename Function>
  Reason ForEachOperand(Function check) {
    for (int i = 0; i < kOperandCount; ++i) {
      const auto index = static_cast<OperandIndex>(i);
      if (!rules_.operand(index).taken) continue;
      if (const Reason reason = check(index, rules_.operand(index), job_.operand(index)); Failed(reason)) return reason;
    }
    return {};
  }

  Reason CheckPresence() {
    for (int i = 0; i < kOperandCount; ++i) {
      const auto index = static_cast<OperandIndex>(i);
      const bool present = job_.operand(index).region != 0;
      const bool taken = rules_.operand(index).taken;
      if (taken && !present) return {.field = FieldOf(index), .rule = Rule::kMissing};
      if (!taken && present) return {.field = FieldOf(index), .rule = Rule::kUnexpected};
    }
    return {};
  }

  Reason CheckTypes() {
    return ForEachOperand([](OperandIndex index, const OperandRule& rule, const OperandDescriptor& operand) -> Reason {
      const JobField field = FieldOf(index);
      const bool known = ByteSize(operand.dtype) != 0;
      if (!known || (rule.dtypes & SetOf(operand.dtype)) == 0) {
        // A set of one names what was expected.
        int64_t expected = 0;
        for (int dtype = 0; dtype < 32; ++dtype) {
          if (rule.dtypes == DTypeSet{1} << dtype) expected = dtype;
        }
        return {.field = field, .rule = Rule::kDType, .expected = expected, .got = static_cast<int64_t>(operand.dtype)};
      }
      if (operand.rank != rule.rank) {
        return {.field = field, .rule = Rule::kRank, .expected = rule.rank, .got = operand.rank};
      }
      for (int32_t i = 0; i < rule.rank; ++i) {
        const int64_t extent = operand.shape[i];
        if (extent < 0) return {.field = field, .rule = Rule::kExtentNegative, .index = i, .got = extent};
        const int64_t most = rule.rank == 1 ? kMaxFlatExtent : kMaxExtent;
        if (extent > most) {
          return {.field = field, .rule = Rule::kExtentTooLarge, .index = i, .expected = most, .got = extent};
        }
      }
      return {};
    });
  }

  Reason CheckExtents() {
    const OperandDescriptor& a = job_.operand(OperandIndex::kA);
    const OperandDescriptor& b = job_.operand(OperandIndex::kB);
    const OperandDescriptor& d = job_.operand(OperandIndex::kD);
    switch (job_.op) {
      case Op::kDense:
        return CheckProduct(a.shape[0], b.shape[0], a.shape[1], 0);
      case Op::kMGroupedContiguous:
        return CheckProduct(a.shape[0], b.shape[1], a.shape[1], b.shape[0]);
      case Op::kMGroupedMasked:
        return CheckProduct(a.shape[1], b.shape[1], a.shape[2], a.shape[0]);
      case Op::kKGrouped:
        SetDimensions(d.shape[1], d.shape[2], 0, d.shape[0]);
        return CheckGroupArrayExtent();
      case Op::kQuantize:
        return CheckQuantizeExtents(a.shape[0], a.shape[1]);
      case Op::kTranspose:
        SetDimensions(a.shape[0], 0, a.shape[1], 0);
        return Expect(OperandIndex::kD, {a.shape[1], a.shape[0]});
      default:  // Op::kCopy.
        SetDimensions(1, 0, a.shape[0], 0);
        return Expect(OperandIndex::kD, {a.shape[0]});
    }
  }

  void SetDimensions(int64_t m, int64_t n, int64_t k, int64_t groups) {
    gemm_.m = m;
    gemm_.n = n;
    gemm_.k = k;
    gemm_.groups = groups;
  }

  Reason CheckProduct(int64_t m, int64_t n, int64_t k, int64_t groups) {
    SetDimensions(m, n, k, groups);
    const int64_t blocks_n = CeilDiv(n, kScaleBlock);
    const int64_t blocks_k = CeilDiv(k, kScaleBlock);
    const bool masked = job_.op == Op::kMGroupedMasked;
    const bool grouped = job_.op != Op::kDense;
    if (const Reason reason = Expect(OperandIndex::kB, grouped ? Extents{groups, n, k} : Extents{n, k});
        Failed(reason)) {
      return reason;
    }
    if (const Reason reason = Expect(OperandIndex::kSfa, masked ? Extents{groups, m, blocks_k} : Extents{m, blocks_k});
        Failed(reason)) {
      return reason;
    }
    const int64_t sfb_rows = job_.scaling == Scaling::k1D1D ? n : blocks_n;
    if (const Reason reason =
            Expect(OperandIndex::kSfb, grouped ? Extents{groups, sfb_rows, blocks_k} : Extents{sfb_rows, blocks_k});
        Failed(reason)) {
      return reason;
    }
    if (const Reason reason = Expect(OperandIndex::kD, masked ? Extents{groups, m, n} : Extents{m, n});
        Failed(reason)) {
      return reason;
    }
    return CheckGroupArrayExtent();
  }

  Reason CheckQuantizeExtents(int64_t m, int64_t k) {
    SetDimensions(m, 0, k, 0);
    if (const Reason reason = Expect(OperandIndex::kD, {m, k}); Failed(reason)) return reason;
    const bool rows = job_.quantize_block == QuantizeBlock::k1x128;
    return Expect(OperandIndex::kSfd, {rows ? m : CeilDiv(m, kScaleBlock), CeilDiv(k, kScaleBlock)});
  }

  Reason CheckGroupArrayExtent() {
    if (!rules_.operand(OperandIndex::kGroups).taken) return {};
    if (gemm_.groups > kMaxGroups) {
      const OperandIndex index = job_.op == Op::kKGrouped ? OperandIndex::kD : OperandIndex::kB;
      return {.field = FieldOf(index), .rule = Rule::kExtentTooLarge, .expected = kMaxGroups, .got = gemm_.groups};
    }
    if (job_.group_encoding == GroupEncoding::kOffsets) return Expect(OperandIndex::kGroups, {gemm_.groups + 1});
    if (job_.group_encoding != GroupEncoding::kRowIndex) return Expect(OperandIndex::kGroups, {gemm_.groups});
    if (gemm_.m > kMaxIndexedRows) {
      return {.field = JobField::kA, .rule = Rule::kExtentTooLarge, .expected = kMaxIndexedRows, .got = gemm_.m};
    }
    return Expect(OperandIndex::kGroups, {gemm_.m});
  }

  // Absent operands have no extents.
  Reason Expect(OperandIndex index, const Extents& extents) {
    const OperandRule& rule = rules_.operand(index);
    for (int32_t i = 0; rule.taken && i < rule.rank; ++i) {
      const int64_t expected = extents[static_cast<size_t>(i)];
      const int64_t got = job_.operand(index).shape[i];
      if (got == expected) continue;
      return {.field = FieldOf(index), .rule = Rule::kExtent, .index = i, .expected = expected, .got = got};
    }
    return {};
  }

  Reason CheckLayouts() {
    return ForEachOperand([](OperandIndex index, const OperandRule& rule, const OperandDescriptor& operand) {
      return CheckLayout(FieldOf(index), rule, operand);
    });
  }

  static Reason CheckLayout(JobField field, const OperandRule& rule, const OperandDescriptor& operand) {
    // Nothing is read or written through the strides of an empty operand, whose contiguous ones are 0 or 1.
    if (std::count(operand.shape, operand.shape + rule.rank, 0) != 0) return {};
    const int32_t last = rule.rank - 1;
    const bool m_major =
        rule.layout == Layout::kScaleRows && operand.strides[last] != 1 && operand.strides[last - 1] == 1;
    const bool on_16_bytes = m_major || rule.layout == Layout::kMatrix || rule.layout == Layout::kFlat;
    int64_t alignment = on_16_bytes ? kMatrixAlignment : ByteSize(operand.dtype);
    if (rule.layout == Layout::kBytes) alignment = 1;

    const int32_t inner = m_major ? last - 1 : last;
    if (operand.strides[inner] != 1) {
      return {.field = field, .rule = Rule::kInnerStride, .index = inner, .expected = 1, .got = operand.strides[inner]};
    }
    Wide span = operand.shape[inner];  // Elements from the first to just past the last, so far.
    for (int32_t i = last; i >= 0; --i) {
      // Dimensions from the inside out: the inner one, its neighbour, then the outermost.
      const int32_t dimension = m_major && i >= last - 1 ? (last - 1) + (last - i) : i;
      if (dimension == inner) continue;
      if (const Reason reason = CheckStride(field, operand, dimension, span, on_16_bytes); Failed(reason))
        return reason;
      const int64_t extent = operand.shape[dimension];
      span = extent == 0 || span == 0 ? 0 : span + static_cast<Wide>(extent - 1) * operand.strides[dimension];
    }
    if (operand.offset % static_cast<uint64_t>(alignment) != 0) {
      return {.field = field,
              .rule = Rule::kAlignment,
              .expected = alignment,
              .got = Clamp(static_cast<Wide>(operand.offset))};
    }
    return {};
  }

  static Reason CheckStride(JobField field, const OperandDescriptor& operand, int32_t dimension, Wide at_least,
                            bool on_16_bytes) {
    const int64_t stride = operand.strides[dimension];
    if (stride > kMaxStride) {
      return {.field = field, .rule = Rule::kStrideTooLarge, .index = dimension, .expected = kMaxStride, .got = stride};
    }
    if (stride < at_least) {
      return {.field = field,
              .rule = Rule::kStrideTooSmall,
              .index = dimension,
              .expected = Clamp(at_least),
              .got = stride};
    }
    const int64_t pitch = stride * ByteSize(operand.dtype);
    if (on_16_bytes && pitch % kMatrixAlignment != 0) {
      return {.field = field, .rule = Rule::kRowPitch, .index = dimension, .expected = kMatrixAlignment, .got = pitch};
    }
    return {};
  }

  Reason Resolve() {
    return ForEachOperand([this](OperandIndex index, const OperandRule&, const OperandDescriptor& operand) -> Reason {
      const JobField field = FieldOf(index);
      RegionHit hit = find_region_(operand.region);
      if (hit.rule != Rule::kNone) return {.field = field, .rule = hit.rule};
      const bool is_output = index == OperandIndex::kD || index == OperandIndex::kSfd;
      if (is_output && hit.access != Access::kReadWrite) return {.field = field, .rule = Rule::kReadOnly};

      Wide last = 0;
      bool empty = false;
      for (int i = 0; i < operand.rank; ++i) {
        empty = empty || operand.shape[i] == 0;
        last += static_cast<Wide>(operand.shape[i] - 1) * operand.strides[i];
      }
      const Wide end = static_cast<Wide>(operand.offset) + (last + 1) * ByteSize(operand.dtype);
      if (!empty && end > static_cast<Wide>(hit.memory->byte_size())) {
        return {.field = field,
                .rule = Rule::kOutsideRegion,
                .expected = Clamp(static_cast<Wide>(hit.memory->byte_size())),
                .got = end > std::numeric_limits<int64_t>::max() ? -1 : static_cast<int64_t>(end)};
      }
      Operand& checked = gemm_.operand(index);
      checked.memory = std::move(hit.memory);
      checked.region = operand.region;
      checked.offset = empty ? 0 : operand.offset;
      checked.dtype = operand.dtype;
      checked.rank = operand.rank;
      std::copy_n(operand.shape, operand.rank, checked.shape.begin());
      std::copy_n(operand.strides, operand.rank, checked.strides.begin());
      return {};
    });
  }

  Reason CheckOverlaps() {
    for (const OperandIndex output : {OperandIndex::kD, OperandIndex::kSfd}) {
      if (!gemm_.operand(output).present()) continue;
      const MemoryWindow window = WindowOf(gemm_.operand(output));
      for (int i = 0; i < kOperandCount; ++i) {
        const Operand& other = gemm_.operands[static_cast<size_t>(i)];
        if (i == static_cast<int>(output) || !other.present() || !Overlap(window, WindowOf(other))) continue;
        return {.field = FieldOf(output), .rule = Rule::kOverlapsInput, .got = i};
      }
    }
    return {};
  }

  Reason CheckGroups() {
    if (!rules_.operand(OperandIndex::kGroups).taken) return {};
    if (RowsStayOnDevice()) {
      gemm_.masked_on_device = true;
      for (int64_t group = 0; group < gemm_.groups && gemm_.m > 0; ++group)
        gemm_.segments.push_back({group, 0, gemm_.m});
      return {};
    }
    absl::StatusOr<std::vector<int64_t>> values = ReadGroupArray(gemm_.operand(OperandIndex::kGroups));
    if (!values.ok()) return FailureReason(JobField::kGroups, values.status());
    if (job_.op == Op::kKGrouped) return CheckKGroups(*std::move(values));
    constexpr int64_t kDefaultAlignment = 128;
    const RowGroupSpec spec{
        .encoding = job_.group_encoding,
        .rows = gemm_.m,
        .groups = gemm_.groups,
        .alignment = job_.group_alignment == 0 ? kDefaultAlignment : static_cast<int64_t>(job_.group_alignment)};
    return AppendSegments(spec, *values, gemm_.segments);
  }

  // Whether masked_m need not be read here, where the loop would wait for the device: its rows are all there, so
  // nothing has to be copied by rows, and whatever its values are, clamped they are right.
  bool RowsStayOnDevice() const {
    if (job_.op != Op::kMGroupedMasked) return false;
    for (const OperandIndex index : {OperandIndex::kGroups, OperandIndex::kA, OperandIndex::kSfa, OperandIndex::kD}) {
      if (gemm_.operand(index).present() && !gemm_.operand(index).memory->on_device()) return false;
    }
    return true;
  }

  Reason CheckKGroups(std::vector<int64_t> ks) {
    const int64_t multiple = kMatrixAlignment / ByteSize(gemm_.operand(OperandIndex::kA).dtype);
    if (const Reason reason = CheckKSizes(ks, multiple, kMaxExtent); Failed(reason)) return reason;
    gemm_.k = std::accumulate(ks.begin(), ks.end(), int64_t{0});
    const int64_t blocks = std::accumulate(ks.begin(), ks.end(), int64_t{0},
                                           [](int64_t sum, int64_t k) { return sum + CeilDiv(k, kScaleBlock); });
    gemm_.ks = std::move(ks);
    const int64_t a_extent = Clamp(static_cast<Wide>(gemm_.m) * gemm_.k);
    const int64_t b_extent = Clamp(static_cast<Wide>(gemm_.n) * gemm_.k);
    if (const Reason reason = Expect(OperandIndex::kA, {a_extent}); Failed(reason)) return reason;
    if (const Reason reason = Expect(OperandIndex::kSfa, {gemm_.m, blocks}); Failed(reason)) return reason;
    if (const Reason reason = Expect(OperandIndex::kB, {b_extent}); Failed(reason)) return reason;
    return Expect(OperandIndex::kSfb, {gemm_.n, blocks});
  }

  const JobDescriptor& job_;
  RegionLookup find_region_;
  OperationRules rules_;
  Gemm gemm_;
};

}  // namespace

std::variant<Gemm, Reason> CheckJob(const JobDescriptor& job, RegionLookup find_region) {
  Check check(job, find_region);
  if (const Reason reason = check.Run(); Failed(reason)) return reason;
  return check.TakeGemm();
}

void ReadMaskedRows(Gemm& gemm) {
  const absl::StatusOr<std::vector<int64_t>> rows = ReadGroupArray(gemm.operand(OperandIndex::kGroups));
  if (!rows.ok()) return;
  gemm.segments.clear();
  for (int64_t group = 0; group < gemm.groups; ++group) {
    const int64_t end = std::clamp<int64_t>((*rows)[static_cast<size_t>(group)], 0, gemm.m);
    if (end > 0) gemm.segments.push_back({group, 0, end});
  }
  gemm.masked_on_device = false;
}

}  // namespace gemmd
