// SPDX-License-Identifier: Apache-2.0
#include "server/job_builder.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

namespace gemmd {
namespace {

// Blocks of the arena start on multiples of 64 bytes, and so does every operand inside one.
constexpr uint64_t kOperandAlignment = 64;

constexpr uint64_t AlignUp(uint64_t bytes) {
  return (bytes + kOperandAlignment - 1) / kOperandAlignment * kOperandAlignment;
}
constexpr int64_t CeilDiv(int64_t value, int64_t divisor) { return value / divisor + (value % divisor != 0 ? 1 : 0); }

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, what));
}

absl::Status WithField(absl::string_view field, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

// An enum of the request in the descriptor's byte; what does not fit becomes a value that the worker refuses.
template <typename Enum>
Enum Narrow(int64_t value) {
  return static_cast<Enum>(value < 0 || value > 255 ? 255 : value);
}

// Bytes of a contiguous tensor; none if an extent is negative or the product is out of range.
std::optional<uint64_t> ContiguousBytes(const OperandDescriptor& operand) {
  uint64_t bytes = static_cast<uint64_t>(ByteSize(operand.dtype));
  bool empty = false;
  for (int i = 0; i < operand.rank; ++i) {
    if (operand.shape[i] < 0) return std::nullopt;
    if (operand.shape[i] == 0) empty = true;
  }
  if (empty) return 0;
  for (int i = 0; i < operand.rank; ++i) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(operand.shape[i]), &bytes)) return std::nullopt;
  }
  return bytes;
}

void SetContiguousStrides(OperandDescriptor& operand) {
  int64_t stride = 1;
  for (int i = operand.rank - 1; i >= 0; --i) {
    operand.strides[i] = stride;
    // The worker refuses what is out of range.
    if (__builtin_mul_overflow(stride, std::max<int64_t>(operand.shape[i], 1), &stride)) {
      stride = std::numeric_limits<int64_t>::max();
    }
  }
}

void SetShape(OperandDescriptor& operand, std::initializer_list<int64_t> shape) {
  operand.rank = static_cast<uint8_t>(shape.size());
  std::copy(shape.begin(), shape.end(), operand.shape);
}

// One operand of the request on its way into the descriptor.
struct OperandSource {
  OperandIndex index = OperandIndex::kA;
  absl::string_view field;  // As the client calls it.
  const v1::TensorRef* ref = nullptr;
};

// Builds one job. Inputs first, because the shapes of inline outputs follow from theirs; then bytes are placed.
class Builder {
 public:
  Builder(const Memory& memory, uint64_t max_inline_bytes, const Session& session)
      : memory_(memory), max_inline_bytes_(max_inline_bytes), session_(session) {}

  absl::Status Translate(const v1::RunRequest& request);
  absl::Status Place();
  BuiltJob Take() && { return std::move(job_); }

 private:
  // Bytes to copy into the lease, or room for a result in it.
  struct InlinePart {
    OperandIndex index = OperandIndex::kA;
    const std::string* bytes = nullptr;  // Null for a result.
    uint64_t offset = 0;
    uint64_t byte_size = 0;
  };

  OperandDescriptor& operand(OperandIndex index) { return job_.descriptor.operand(index); }

  absl::Status AddDense(const v1::Dense& dense);
  absl::Status AddMGroupedContiguous(const v1::MGroupedContiguous& grouped);
  absl::Status AddMGroupedMasked(const v1::MGroupedMasked& masked);
  absl::Status AddKGrouped(const v1::KGrouped& grouped);
  absl::Status AddQuantize(const v1::Quantize& quantize);
  absl::Status AddRowGroups(const v1::RowGroups& groups);
  absl::Status AddInputs(std::initializer_list<OperandSource> sources);
  absl::Status AddInput(const OperandSource& source);
  absl::Status AddOutput(const OperandSource& source, DType default_dtype,
                         std::initializer_list<int64_t> default_shape);
  absl::Status AddInlineOutput(const OperandSource& source);
  absl::Status AddLayout(const OperandSource& source);
  absl::Status AddSlice(const OperandSource& source);
  absl::Status AddTensor(const OperandSource& source);
  absl::Status KeepTo(WorkerMask workers, absl::string_view field);
  absl::Status RequireRank(OperandIndex index, absl::string_view field, int rank);
  absl::StatusOr<uint64_t> InlineBytes(const OperandSource& source);

  const Memory& memory_;
  const uint64_t max_inline_bytes_;
  const Session& session_;
  BuiltJob job_;
  std::array<InlinePart, kOperandCount> parts_;
  size_t part_count_ = 0;
  uint64_t lease_bytes_ = 0;
};

bool IsInlineOutput(const v1::TensorRef* ref) {
  return ref == nullptr || ref->source_case() == v1::TensorRef::kInline ||
         ref->source_case() == v1::TensorRef::SOURCE_NOT_SET;
}

// The field `name`, or null if it is absent.
#define GEMMD_REF(message, name) ((message).has_##name() ? &(message).name() : nullptr)

absl::Status Builder::Translate(const v1::RunRequest& request) {
  JobDescriptor& job = job_.descriptor;
  job.session = session_.id();
  job.op = OpOf(request);
  job.priority = Narrow<uint8_t>(request.priority());
  switch (request.operation_case()) {
    case v1::RunRequest::kDense:
      return AddDense(request.dense());
    case v1::RunRequest::kMGroupedContiguous:
      return AddMGroupedContiguous(request.m_grouped_contiguous());
    case v1::RunRequest::kMGroupedMasked:
      return AddMGroupedMasked(request.m_grouped_masked());
    case v1::RunRequest::kKGrouped:
      return AddKGrouped(request.k_grouped());
    case v1::RunRequest::kQuantize:
      return AddQuantize(request.quantize());
    case v1::RunRequest::OPERATION_NOT_SET:
      break;
  }
  return Invalid("operation", ": expected one, got none");
}

absl::Status Builder::AddDense(const v1::Dense& dense) {
  job_.descriptor.scaling = Narrow<Scaling>(dense.scaling());
  if (dense.accumulate()) job_.descriptor.flags = kFlagAccumulate;
  absl::Status status = AddInputs({{OperandIndex::kA, "a", GEMMD_REF(dense, a)},
                                   {OperandIndex::kSfa, "sfa", GEMMD_REF(dense, sfa)},
                                   {OperandIndex::kB, "b", GEMMD_REF(dense, b)},
                                   {OperandIndex::kSfb, "sfb", GEMMD_REF(dense, sfb)}});
  const OperandSource d{OperandIndex::kD, "d", GEMMD_REF(dense, d)};
  if (status.ok() && IsInlineOutput(d.ref)) {
    status = RequireRank(OperandIndex::kA, "a", 2);
    if (status.ok()) status = RequireRank(OperandIndex::kB, "b", 2);
  }
  if (!status.ok()) return status;
  return AddOutput(d, DType::kBf16, {operand(OperandIndex::kA).shape[0], operand(OperandIndex::kB).shape[0]});
}

absl::Status Builder::AddMGroupedContiguous(const v1::MGroupedContiguous& grouped) {
  job_.descriptor.scaling = Narrow<Scaling>(grouped.scaling());
  absl::Status status = AddInputs({{OperandIndex::kA, "a", GEMMD_REF(grouped, a)},
                                   {OperandIndex::kSfa, "sfa", GEMMD_REF(grouped, sfa)},
                                   {OperandIndex::kB, "b", GEMMD_REF(grouped, b)},
                                   {OperandIndex::kSfb, "sfb", GEMMD_REF(grouped, sfb)}});
  if (status.ok()) status = AddRowGroups(grouped.row_groups());
  const OperandSource d{OperandIndex::kD, "d", GEMMD_REF(grouped, d)};
  if (status.ok() && IsInlineOutput(d.ref)) {
    status = RequireRank(OperandIndex::kA, "a", 2);
    if (status.ok()) status = RequireRank(OperandIndex::kB, "b", 3);
  }
  if (!status.ok()) return status;
  return AddOutput(d, DType::kBf16, {operand(OperandIndex::kA).shape[0], operand(OperandIndex::kB).shape[1]});
}

absl::Status Builder::AddRowGroups(const v1::RowGroups& groups) {
  JobDescriptor& job = job_.descriptor;
  if (groups.alignment() < 0 || groups.alignment() > std::numeric_limits<uint32_t>::max()) {
    return Invalid("row_groups.alignment", absl::StrCat(": expected 0 to 2^32 - 1, got ", groups.alignment()));
  }
  job.group_alignment = static_cast<uint32_t>(groups.alignment());
  switch (groups.encoding_case()) {
    case v1::RowGroups::kOffsets:
      job.group_encoding = GroupEncoding::kOffsets;
      return AddInput({OperandIndex::kGroups, "row_groups.offsets", &groups.offsets()});
    case v1::RowGroups::kRowIndex:
      job.group_encoding = GroupEncoding::kRowIndex;
      return AddInput({OperandIndex::kGroups, "row_groups.row_index", &groups.row_index()});
    case v1::RowGroups::kAlignedEnds:
      job.group_encoding = GroupEncoding::kAlignedEnds;
      return AddInput({OperandIndex::kGroups, "row_groups.aligned_ends", &groups.aligned_ends()});
    case v1::RowGroups::ENCODING_NOT_SET:
      break;
  }
  return Invalid("row_groups", ": expected one encoding, got none");
}

absl::Status Builder::AddMGroupedMasked(const v1::MGroupedMasked& masked) {
  job_.descriptor.scaling = Narrow<Scaling>(masked.scaling());
  job_.descriptor.group_encoding = GroupEncoding::kMasked;
  absl::Status status = AddInputs({{OperandIndex::kA, "a", GEMMD_REF(masked, a)},
                                   {OperandIndex::kSfa, "sfa", GEMMD_REF(masked, sfa)},
                                   {OperandIndex::kB, "b", GEMMD_REF(masked, b)},
                                   {OperandIndex::kSfb, "sfb", GEMMD_REF(masked, sfb)},
                                   {OperandIndex::kGroups, "masked_m", GEMMD_REF(masked, masked_m)}});
  const OperandSource d{OperandIndex::kD, "d", GEMMD_REF(masked, d)};
  if (status.ok() && IsInlineOutput(d.ref)) {
    status = RequireRank(OperandIndex::kA, "a", 3);
    if (status.ok()) status = RequireRank(OperandIndex::kB, "b", 3);
  }
  if (!status.ok()) return status;
  const OperandDescriptor& a = operand(OperandIndex::kA);
  return AddOutput(d, DType::kBf16, {a.shape[0], a.shape[1], operand(OperandIndex::kB).shape[1]});
}

absl::Status Builder::AddKGrouped(const v1::KGrouped& grouped) {
  job_.descriptor.scaling = Narrow<Scaling>(grouped.scaling());
  job_.descriptor.group_encoding = GroupEncoding::kKSizes;
  if (grouped.accumulate()) job_.descriptor.flags = kFlagAccumulate;
  absl::Status status = AddInputs({{OperandIndex::kA, "a", GEMMD_REF(grouped, a)},
                                   {OperandIndex::kSfa, "sfa", GEMMD_REF(grouped, sfa)},
                                   {OperandIndex::kB, "b", GEMMD_REF(grouped, b)},
                                   {OperandIndex::kSfb, "sfb", GEMMD_REF(grouped, sfb)},
                                   {OperandIndex::kGroups, "ks", GEMMD_REF(grouped, ks)}});
  if (!status.ok()) return status;
  // A and B are flat, so that M and N stand in D's shape only.
  if (grouped.d().shape_size() == 0 && !grouped.d().has_tensor_id() && !grouped.d().has_tensor_name()) {
    return Invalid("d.shape", ": expected 3 dimensions, got none");
  }
  return AddOutput({OperandIndex::kD, "d", GEMMD_REF(grouped, d)}, DType::kF32, {});
}

absl::Status Builder::AddQuantize(const v1::Quantize& quantize) {
  job_.descriptor.quantize_block = Narrow<QuantizeBlock>(quantize.block());
  absl::Status status = AddInput({OperandIndex::kA, "x", GEMMD_REF(quantize, x)});
  const OperandSource q{OperandIndex::kD, "q", GEMMD_REF(quantize, q)};
  const OperandSource sf{OperandIndex::kSfd, "sf", GEMMD_REF(quantize, sf)};
  if (status.ok() && (IsInlineOutput(q.ref) || IsInlineOutput(sf.ref))) status = RequireRank(OperandIndex::kA, "x", 2);
  if (!status.ok()) return status;
  const int64_t m = operand(OperandIndex::kA).shape[0];
  const int64_t k = operand(OperandIndex::kA).shape[1];
  const bool square = quantize.block() == v1::Quantize::BLOCK_128X128;
  status = AddOutput(q, DType::kE4m3, {m, k});
  if (!status.ok()) return status;
  return AddOutput(sf, DType::kF32, {square ? CeilDiv(m, kScaleBlock) : m, CeilDiv(k, kScaleBlock)});
}

absl::Status Builder::AddInputs(std::initializer_list<OperandSource> sources) {
  for (const OperandSource& source : sources) {
    if (absl::Status status = AddInput(source); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Builder::AddInput(const OperandSource& source) {
  if (source.ref == nullptr) return absl::OkStatus();
  switch (source.ref->source_case()) {
    case v1::TensorRef::kSlice:
      return AddSlice(source);
    case v1::TensorRef::kTensorId:
    case v1::TensorRef::kTensorName:
      return AddTensor(source);
    case v1::TensorRef::kInline:
      break;
    case v1::TensorRef::SOURCE_NOT_SET:
      return Invalid(source.field, ": expected inline bytes, a slice or a tensor, got none");
  }
  if (absl::Status status = AddLayout(source); !status.ok()) return status;
  const absl::StatusOr<uint64_t> expected = InlineBytes(source);
  if (!expected.ok()) return expected.status();
  const std::string& bytes = source.ref->inline_();
  if (bytes.size() != *expected) {
    return Invalid(source.field, absl::StrCat(".inline: expected ", *expected, " bytes, got ", bytes.size()));
  }
  parts_[part_count_++] = {source.index, &bytes, lease_bytes_, *expected};
  lease_bytes_ += AlignUp(*expected);
  return absl::OkStatus();
}

absl::Status Builder::AddOutput(const OperandSource& source, DType default_dtype,
                                std::initializer_list<int64_t> default_shape) {
  if (!IsInlineOutput(source.ref)) return AddInput(source);
  if ((job_.descriptor.flags & kFlagAccumulate) != 0) {
    return Invalid(source.field, ": expected a slice or a tensor to accumulate into, got inline");
  }
  if (source.ref != nullptr) {
    if (!source.ref->inline_().empty()) {
      return Invalid(source.field,
                     absl::StrCat(".inline: expected no bytes for a result, got ", source.ref->inline_().size()));
    }
    if (absl::Status status = AddLayout(source); !status.ok()) return status;
  }
  OperandDescriptor& descriptor = operand(source.index);
  if (descriptor.dtype == DType::kNone) descriptor.dtype = default_dtype;
  if (descriptor.rank == 0) {
    SetShape(descriptor, default_shape);
    SetContiguousStrides(descriptor);
  }
  return AddInlineOutput(source);
}

absl::Status Builder::AddInlineOutput(const OperandSource& source) {
  const absl::StatusOr<uint64_t> bytes = InlineBytes(source);
  if (!bytes.ok()) return bytes.status();
  const uint64_t room = max_inline_bytes_ - job_.d_bytes - job_.sf_bytes;
  if (*bytes > room) {
    return Invalid(source.field, absl::StrCat(": expected an inline result of at most ", room, " bytes, got ", *bytes));
  }
  parts_[part_count_++] = {source.index, nullptr, lease_bytes_, *bytes};
  if (source.index == OperandIndex::kSfd) {
    job_.sf_offset = lease_bytes_;
    job_.sf_bytes = *bytes;
  } else {
    job_.d_offset = lease_bytes_;
    job_.d_bytes = *bytes;
  }
  lease_bytes_ += AlignUp(*bytes);
  return absl::OkStatus();
}

absl::Status Builder::AddLayout(const OperandSource& source) {
  const v1::TensorRef& ref = *source.ref;
  OperandDescriptor& descriptor = operand(source.index);
  if (!v1::DType_IsValid(ref.dtype())) {
    return Invalid(source.field, absl::StrCat(".dtype: expected an element type, got ", static_cast<int>(ref.dtype())));
  }
  if (ref.shape_size() > kMaxRank) {
    return Invalid(source.field,
                   absl::StrCat(".shape: expected at most ", kMaxRank, " dimensions, got ", ref.shape_size()));
  }
  const bool is_inline = !ref.has_slice() && !ref.has_tensor_id() && !ref.has_tensor_name();
  if (ref.strides_size() != 0 && (is_inline || ref.strides_size() != ref.shape_size())) {
    return Invalid(source.field,
                   absl::StrCat(".strides: expected ", is_inline ? 0 : ref.shape_size(), ", got ", ref.strides_size()));
  }
  descriptor.dtype = static_cast<DType>(ref.dtype());
  descriptor.rank = static_cast<uint8_t>(ref.shape_size());
  std::copy(ref.shape().begin(), ref.shape().end(), descriptor.shape);
  SetContiguousStrides(descriptor);
  std::copy(ref.strides().begin(), ref.strides().end(), descriptor.strides);
  return absl::OkStatus();
}

// Only workers that reach this operand too can take the job.
absl::Status Builder::KeepTo(WorkerMask workers, absl::string_view field) {
  job_.workers &= workers;
  if (job_.workers != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(field, ": expected memory on the same device as the other operands of the request"));
}

absl::Status Builder::AddSlice(const OperandSource& source) {
  if (absl::Status status = AddLayout(source); !status.ok()) return status;
  const v1::Slice& slice = source.ref->slice();
  const absl::StatusOr<RegionView> region = memory_.regions.Find(session_, slice.region_id());
  if (!region.ok()) return WithField(source.field, region.status());
  operand(source.index).region = region->region_id;
  operand(source.index).offset = slice.offset();
  const bool on_gpu = !region->device.empty() && region->device != kCpuDevice;
  const Transport transport = on_gpu ? Transport::kDevice : Transport::kHost;
  job_.transports[static_cast<size_t>(source.index)] = transport;
  if (job_.transport != Transport::kDevice) job_.transport = transport;
  return KeepTo(region->workers, source.field);
}

absl::Status Builder::AddTensor(const OperandSource& source) {
  if (absl::Status status = AddLayout(source); !status.ok()) return status;
  absl::StatusOr<TensorView> tensor = source.ref->has_tensor_name()
                                          ? memory_.tensors.FindByName(session_, source.ref->tensor_name())
                                          : memory_.tensors.Find(session_, source.ref->tensor_id());
  if (!tensor.ok()) return WithField(source.field, tensor.status());
  const bool is_output = source.index == OperandIndex::kD || source.index == OperandIndex::kSfd;
  if (is_output && tensor->read_only) {
    return absl::PermissionDeniedError(
        absl::StrCat(source.field, ": expected a tensor that may be written, got one of the daemon's manifest"));
  }
  OperandDescriptor& descriptor = operand(source.index);
  descriptor.region = tensor->region_id;
  if (descriptor.dtype == DType::kNone) descriptor.dtype = tensor->dtype;
  if (descriptor.rank == 0) {
    descriptor.rank = static_cast<uint8_t>(tensor->rank);
    std::copy(tensor->shape.begin(), tensor->shape.end(), descriptor.shape);
    SetContiguousStrides(descriptor);
  }
  if (absl::Status status = KeepTo(MaskOf(tensor->worker), source.field); !status.ok()) return status;
  if (job_.transport == Transport::kInline) job_.transport = Transport::kTensor;
  job_.transports[static_cast<size_t>(source.index)] = Transport::kTensor;
  job_.pins.push_back(*std::move(tensor));
  return absl::OkStatus();
}

absl::Status Builder::RequireRank(OperandIndex index, absl::string_view field, int rank) {
  if (operand(index).rank == rank) return absl::OkStatus();
  return Invalid(field, absl::StrCat(".shape: expected ", rank, " dimensions, got ", operand(index).rank));
}

absl::StatusOr<uint64_t> Builder::InlineBytes(const OperandSource& source) {
  const OperandDescriptor& descriptor = operand(source.index);
  if (descriptor.dtype == DType::kNone) return Invalid(source.field, ".dtype: expected an element type, got none");
  if (descriptor.rank == 0) return Invalid(source.field, ".shape: expected 1 to 3 dimensions, got none");
  const std::optional<uint64_t> bytes = ContiguousBytes(descriptor);
  if (!bytes) return Invalid(source.field, ".shape: expected extents of at least 0 whose product is below 2^64 bytes");
  return *bytes;
}

absl::Status Builder::Place() {
  if (part_count_ == 0) return absl::OkStatus();
  absl::StatusOr<ArenaLease> lease = memory_.arena.Allocate(lease_bytes_);
  if (!lease.ok()) return lease.status();
  job_.lease = *std::move(lease);
  // Rows of a group that holds none stay as they are, so they must be zero from the start; all other operations write
  // every element of their results.
  const bool clear = job_.descriptor.op == Op::kMGroupedContiguous || job_.descriptor.op == Op::kMGroupedMasked;
  for (size_t i = 0; i < part_count_; ++i) {
    const InlinePart& part = parts_[i];
    std::byte* destination = job_.lease.data() + part.offset;
    if (part.bytes != nullptr) {
      std::memcpy(destination, part.bytes->data(), part.byte_size);
    } else if (clear) {
      std::memset(destination, 0, part.byte_size);
    }
    operand(part.index).region = job_.lease.region_id();
    operand(part.index).offset = job_.lease.offset() + part.offset;
  }
  return absl::OkStatus();
}

#undef GEMMD_REF

}  // namespace

absl::StatusOr<BuiltJob> JobBuilder::Build(const v1::RunRequest& request, const Session& session) const {
  Builder builder(memory_, max_inline_bytes_, session);
  if (absl::Status status = builder.Translate(request); !status.ok()) return status;
  if (absl::Status status = builder.Place(); !status.ok()) return status;
  return std::move(builder).Take();
}

IoBytes IoBytesOf(const BuiltJob& job) {
  IoBytes bytes{};
  for (size_t i = 0; i < kOperandCount; ++i) {
    const OperandDescriptor& operand = job.descriptor.operands[i];
    if (operand.region == 0) continue;
    auto size = static_cast<uint64_t>(ByteSize(operand.dtype));
    for (int dimension = 0; dimension < operand.rank; ++dimension) {
      size *= static_cast<uint64_t>(operand.shape[dimension]);
    }
    const auto index = static_cast<OperandIndex>(i);
    const bool is_result = index == OperandIndex::kD || index == OperandIndex::kSfd;
    auto& directions = bytes[static_cast<size_t>(job.transports[i])];
    if (is_result) directions[static_cast<size_t>(Direction::kOut)] += size;
    if (!is_result || (job.descriptor.flags & kFlagAccumulate) != 0) {
      directions[static_cast<size_t>(Direction::kIn)] += size;
    }
  }
  return bytes;
}

Op OpOf(const v1::RunRequest& request) {
  switch (request.operation_case()) {
    case v1::RunRequest::kDense:
      return Op::kDense;
    case v1::RunRequest::kMGroupedContiguous:
      return Op::kMGroupedContiguous;
    case v1::RunRequest::kMGroupedMasked:
      return Op::kMGroupedMasked;
    case v1::RunRequest::kKGrouped:
      return Op::kKGrouped;
    case v1::RunRequest::kQuantize:
      return Op::kQuantize;
    case v1::RunRequest::OPERATION_NOT_SET:
      break;
  }
  return Op::kNone;
}

}  // namespace gemmd
