// SPDX-License-Identifier: Apache-2.0
#include "client/problem.h"

#include "client/random_data.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace gemmd {
namespace {

// Sets the seeds of B apart from those of A. Rows of A and B from one seed would be equal, and the square of a row
// towers above every other element of D.
constexpr uint64_t kWeightsSeed = uint64_t{1} << 40;
constexpr int64_t kPaddedRows = 128;  // DeepGEMM's alignment of groups.

int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

int64_t Sum(const std::vector<int64_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

bool IsGrouped(Op op) { return op == Op::kMGroupedContiguous || op == Op::kMGroupedMasked || op == Op::kKGrouped; }

// As even as can be; K is dealt out in whole scale blocks.
std::vector<int64_t> EvenSizes(const ProblemSpec& spec) {
  if (!IsGrouped(spec.op)) return {};
  if (!spec.group_sizes.empty()) return spec.group_sizes;
  const int64_t unit = spec.op == Op::kKGrouped ? kScaleBlock : 1;
  const int64_t total = spec.op == Op::kKGrouped ? spec.k / unit : spec.m;
  std::vector<int64_t> sizes;
  for (int64_t group = 0; group < spec.groups; ++group) {
    // Masked: from full to a little less, so that the mask matters.
    sizes.push_back(spec.op == Op::kMGroupedMasked
                        ? std::max<int64_t>(0, spec.m - group % 4)
                        : unit * (total * (group + 1) / spec.groups - total * group / spec.groups));
  }
  return sizes;
}

int64_t SfColumns(const ProblemSpec& spec) {
  if (spec.op != Op::kKGrouped) return CeilDiv(spec.k, kScaleBlock);
  int64_t columns = 0;
  for (const int64_t k : EvenSizes(spec)) columns += CeilDiv(k, kScaleBlock);
  return columns;
}

// [groups * rows, columns] of E4M3 with scales of `block`, or BF16 without.
void FillOperand(const Arena& arena, size_t values, size_t sf, int64_t groups, QuantizeBlock block, uint64_t seed) {
  const std::vector<int64_t>& shape = arena.array(values).shape;
  const int64_t columns = shape.back();
  const int64_t rows = columns == 0 ? 0 : ElementCount(shape) / columns / groups;
  if (arena.array(values).dtype == DType::kBf16) {
    FillRandom(seed, groups * rows, columns, arena.Elements<uint16_t>(values));
    return;
  }
  const size_t sf_count = arena.Elements<float>(sf).size() / static_cast<size_t>(groups);
  const auto value_count = static_cast<size_t>(rows * columns);
  for (int64_t group = 0; group < groups; ++group) {
    const auto g = static_cast<size_t>(group);
    FillRandomQuantized(seed + g, rows, columns, block,
                        arena.Elements<uint8_t>(values).subspan(g * value_count, value_count),
                        arena.Elements<float>(sf).subspan(g * sf_count, sf_count));
  }
}

// One row or 128 rows of B for each scale.
int64_t SfRowsOfB(const ProblemSpec& spec) { return spec.scaling == Scaling::k1D2D ? kScaleBlock : 1; }

// k-grouped operands are flat: values of group after group, scales [rows, sum of blocks]. Filled group by group into
// scratch, then the scales are put into their columns.
void FillKGrouped(const Arena& arena, size_t values, size_t sf, int64_t rows, const std::vector<int64_t>& ks,
                  uint64_t seed) {
  int64_t element = 0;
  int64_t sf_begin = 0;
  const bool bf16 = arena.array(values).dtype == DType::kBf16;
  const int64_t pitch = bf16 ? 0 : arena.array(sf).shape[1];
  for (size_t group = 0; group < ks.size(); ++group) {
    const auto count = static_cast<size_t>(rows * ks[group]);
    if (bf16) {
      FillRandom(seed + group, rows, ks[group],
                 arena.Elements<uint16_t>(values).subspan(static_cast<size_t>(element), count));
    } else {
      const int64_t columns = CeilDiv(ks[group], kScaleBlock);
      std::vector<float> scales(static_cast<size_t>(rows * columns));
      FillRandomQuantized(seed + group, rows, ks[group], QuantizeBlock::k1x128,
                          arena.Elements<uint8_t>(values).subspan(static_cast<size_t>(element), count),
                          absl::MakeSpan(scales));
      for (int64_t row = 0; row < rows; ++row) {
        std::copy_n(scales.data() + row * columns, columns, arena.Elements<float>(sf).data() + row * pitch + sf_begin);
      }
      sf_begin += columns;
    }
    element += rows * ks[group];
  }
}

DType OperandDType(const ProblemSpec& spec) { return spec.scaling == Scaling::kNone ? DType::kBf16 : DType::kE4m3; }

// Whether the request has scale factors of A.
bool HasSfa(const ProblemSpec& spec) { return spec.scaling != Scaling::kNone && !spec.bf16_a; }

}  // namespace

absl::StatusOr<Op> ParseOp(absl::string_view name) {
  if (name == "contiguous") return Op::kMGroupedContiguous;
  if (name == "masked") return Op::kMGroupedMasked;
  for (const Op op : {Op::kDense, Op::kMGroupedContiguous, Op::kMGroupedMasked, Op::kKGrouped, Op::kQuantize}) {
    if (name == Name(op)) return op;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("op: expected dense, contiguous, masked, k_grouped or quantize, got \"", name, "\""));
}

absl::StatusOr<Scaling> ParseScaling(absl::string_view name) {
  if (name == "1d2d") return Scaling::k1D2D;
  if (name == "1d1d") return Scaling::k1D1D;
  if (name == "bf16" || name == "none") return Scaling::kNone;
  return absl::InvalidArgumentError(absl::StrCat("scaling: expected 1d2d, 1d1d or bf16, got \"", name, "\""));
}

int64_t RowsOf(const ProblemSpec& spec) {
  if (spec.op == Op::kKGrouped) return spec.groups * spec.m;
  return IsGrouped(spec.op) ? Sum(EvenSizes(spec)) : spec.m;
}

double FlopsOf(const ProblemSpec& spec) {
  if (spec.op == Op::kQuantize) return 0;
  const int64_t rows = spec.op == Op::kKGrouped ? spec.m : RowsOf(spec);
  const int64_t k = spec.op == Op::kKGrouped ? Sum(EvenSizes(spec)) : spec.k;
  return 2.0 * static_cast<double>(rows) * static_cast<double>(spec.n) * static_cast<double>(k);
}

std::string ShapeText(const ProblemSpec& spec) {
  if (spec.op == Op::kQuantize) return absl::StrCat(spec.m, "x", spec.k);
  const std::string shape = absl::StrCat(spec.m, "x", spec.n, "x", spec.k);
  return IsGrouped(spec.op) ? absl::StrCat(shape, " G=", spec.groups) : shape;
}

absl::StatusOr<std::shared_ptr<const Weights>> Weights::Create(Client* client, const ProblemSpec& spec,
                                                               Transport transport, uint64_t seed,
                                                               const std::string& shared_name) {
  const std::shared_ptr<Weights> weights(new Weights);
  seed += kWeightsSeed;
  const int64_t groups = std::max<int64_t>(spec.groups, 1);
  const bool k_grouped = spec.op == Op::kKGrouped;
  const int64_t sf_rows = CeilDiv(spec.n, SfRowsOfB(spec));
  const bool stacked = IsGrouped(spec.op) && !k_grouped;
  const std::vector<int64_t> sizes = EvenSizes(spec);
  const std::vector<int64_t> b_shape = k_grouped ? std::vector<int64_t>{spec.n * Sum(sizes)}
                                       : stacked ? std::vector<int64_t>{spec.groups, spec.n, spec.k}
                                                 : std::vector<int64_t>{spec.n, spec.k};
  const std::vector<int64_t> sf_shape = stacked ? std::vector<int64_t>{spec.groups, sf_rows, SfColumns(spec)}
                                                : std::vector<int64_t>{sf_rows, SfColumns(spec)};
  Arena& arena = weights->arena_;
  const bool scaled = spec.scaling != Scaling::kNone;
  const size_t b = arena.Add(OperandDType(spec), b_shape);
  const size_t sfb = scaled ? arena.Add(DType::kF32, sf_shape) : 0;
  if (absl::Status status = arena.Allocate(client, transport); !status.ok()) return status;
  if (k_grouped) {
    FillKGrouped(arena, b, sfb, spec.n, sizes, seed);
  } else {
    const QuantizeBlock block = spec.scaling == Scaling::k1D2D ? QuantizeBlock::k128x128 : QuantizeBlock::k1x128;
    FillOperand(arena, b, sfb, groups, block, seed);
  }
  if (absl::Status status = arena.Upload(); !status.ok()) return status;
  weights->b_ = arena.View(b);
  if (scaled) weights->sfb_ = arena.View(sfb);
  weights->operand_.values = reference::RowMajor(arena.data(b), OperandDType(spec), groups * spec.n, spec.k);
  weights->operand_.sf_rows = SfRowsOfB(spec);
  if (scaled) {
    weights->operand_.sf =
        reference::RowMajor(arena.data(sfb), DType::kF32, stacked ? groups * sf_rows : sf_rows, SfColumns(spec));
  }
  if (transport != Transport::kTensor) return std::shared_ptr<const Weights>(weights);
  weights->client_ = client;
  for (const size_t index : {b, sfb}) {
    if (index == sfb && !scaled) continue;
    const Arena::Array& array = arena.array(index);
    TensorSpec tensor_spec{array.dtype, array.shape};
    if (!shared_name.empty()) {
      tensor_spec.name = absl::StrCat(shared_name, index == b ? ".b" : ".sfb");
      tensor_spec.shared = true;
    }
    const absl::StatusOr<v1::Tensor> tensor = client->CreateTensor(tensor_spec);
    if (!tensor.ok()) return tensor.status();
    weights->tensor_ids_.push_back(tensor->id());
    if (tensor_spec.shared) weights->tensor_names_.push_back(tensor_spec.name);
    const absl::Status written = client->WriteTensor(tensor->id(), arena.Elements<std::byte>(index));
    if (!written.ok()) return written;
    (index == b ? weights->b_ : weights->sfb_) = Resident(tensor->id());
  }
  return std::shared_ptr<const Weights>(weights);
}

std::shared_ptr<const Weights> Weights::Named(const ProblemSpec& spec, const std::string& name) {
  std::shared_ptr<Weights> weights(new Weights);
  weights->b_ = ResidentNamed(name);
  if (spec.scaling != Scaling::kNone) weights->sfb_ = ResidentNamed(absl::StrCat(name, ".sf"));
  return weights;
}

Weights::~Weights() {
  // A failure means that the session is gone, and its private tensors with it.
  for (const uint64_t id : tensor_ids_) client_->DeleteTensor(id).IgnoreError();
}

absl::StatusOr<std::unique_ptr<Problem>> Problem::Create(Client* client, const ProblemSpec& spec, Transport transport,
                                                         std::shared_ptr<const Weights> weights, uint64_t seed) {
  if (spec.m < 0 || spec.n < 0 || spec.k < 0 || spec.groups < 0) {
    return absl::InvalidArgumentError("shape: expected m, n, k and groups of at least 0");
  }
  if (IsGrouped(spec.op) && spec.groups == 0) return absl::InvalidArgumentError("groups: expected at least 1, got 0");
  if (spec.bf16_a && (spec.scaling == Scaling::kNone || spec.op == Op::kKGrouped || spec.op == Op::kQuantize)) {
    return absl::InvalidArgumentError("a_dtype: expected e4m3 for this operation and scaling, got bf16");
  }
  if (spec.accumulate && (transport == Transport::kInline || transport == Transport::kTensor)) {
    return absl::InvalidArgumentError(
        "accumulate: expected a transport whose D is shared memory (not inline or tensor)");
  }
  std::unique_ptr<Problem> problem(new Problem);
  problem->spec_ = spec;
  problem->weights_ = std::move(weights);
  if (absl::Status status = problem->Plan(client, transport); !status.ok()) return status;
  problem->Fill(seed);
  absl::Status status = problem->arena_.Upload();
  status.Update(problem->ResetResult());
  if (!status.ok()) return status;
  problem->BuildRequest();
  return problem;
}

absl::Status Problem::Plan(Client* client, Transport transport) {
  const bool inline_result = transport == Transport::kInline || transport == Transport::kTensor;
  sizes_ = EvenSizes(spec_);
  int64_t rows = spec_.m;
  if (spec_.op == Op::kMGroupedContiguous) {
    const int64_t alignment = spec_.encoding == GroupEncoding::kOffsets ? 1 : kPaddedRows;
    for (size_t group = 0; group < sizes_.size(); ++group) {
      row_group_.insert(row_group_.end(), static_cast<size_t>(sizes_[group]), static_cast<int64_t>(group));
      const auto size = static_cast<int64_t>(row_group_.size());
      row_group_.resize(static_cast<size_t>(CeilDiv(size, alignment) * alignment), -1);
    }
    rows = static_cast<int64_t>(row_group_.size());
  }
  if (spec_.op == Op::kQuantize) {
    const bool square = spec_.block == QuantizeBlock::k128x128;
    a_ = arena_.Add(DType::kBf16, {spec_.m, spec_.k});
    d_ = arena_.Add(DType::kE4m3, {spec_.m, spec_.k}, inline_result);
    sfd_ = arena_.Add(DType::kF32, {square ? CeilDiv(spec_.m, kScaleBlock) : spec_.m, SfColumns(spec_)}, inline_result);
    return arena_.Allocate(client, transport);
  }
  std::vector<int64_t> a_shape = {rows, spec_.k};
  std::vector<int64_t> sf_shape = {rows, SfColumns(spec_)};
  std::vector<int64_t> d_shape = {rows, spec_.n};
  if (spec_.op == Op::kKGrouped) a_shape = {spec_.m * Sum(sizes_)};
  if (spec_.op == Op::kMGroupedMasked) {
    for (std::vector<int64_t>* shape : {&a_shape, &sf_shape}) shape->insert(shape->begin(), spec_.groups);
  }
  if (spec_.op == Op::kMGroupedMasked || spec_.op == Op::kKGrouped) d_shape.insert(d_shape.begin(), spec_.groups);
  a_ = arena_.Add(spec_.bf16_a ? DType::kBf16 : OperandDType(spec_), a_shape);
  if (HasSfa(spec_)) sfa_ = arena_.Add(DType::kF32, sf_shape);
  d_ = arena_.Add(spec_.d_dtype, d_shape, inline_result);
  if (IsGrouped(spec_.op)) {
    int64_t count = spec_.groups;
    if (spec_.op == Op::kMGroupedContiguous && spec_.encoding == GroupEncoding::kOffsets) ++count;
    if (spec_.op == Op::kMGroupedContiguous && spec_.encoding == GroupEncoding::kRowIndex) count = rows;
    groups_ = arena_.Add(DType::kI32, {count});
  }
  return arena_.Allocate(client, transport);
}

void Problem::Fill(uint64_t seed) {
  if (spec_.op == Op::kQuantize) {
    FillRandom(seed, spec_.m, spec_.k, arena_.Elements<uint16_t>(a_));
    return;
  }
  if (spec_.op == Op::kKGrouped) {
    FillKGrouped(arena_, a_, sfa_, spec_.m, sizes_, seed);
  } else {
    FillOperand(arena_, a_, sfa_, 1, QuantizeBlock::k1x128, seed);
  }
  if (spec_.bf16_a) {
    const int64_t rows = spec_.k == 0 ? 0 : ElementCount(arena_.array(a_).shape) / spec_.k;
    quantized_a_ =
        reference::Quantize(reference::RowMajor(arena_.data(a_), DType::kBf16, rows, spec_.k), QuantizeBlock::k1x128);
  }
  if (spec_.accumulate) {
    initial_d_.resize(arena_.Elements<float>(d_).size());
    FillRandom(seed + 1, 1, static_cast<int64_t>(initial_d_.size()), absl::MakeSpan(initial_d_));
  }
  if (!IsGrouped(spec_.op)) return;
  const absl::Span<int32_t> groups = arena_.Elements<int32_t>(groups_);
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  if (spec_.op != Op::kMGroupedContiguous) {
    std::transform(sizes_.begin(), sizes_.end(), groups.begin(), narrow);
  } else if (spec_.encoding == GroupEncoding::kRowIndex) {
    std::transform(row_group_.begin(), row_group_.end(), groups.begin(), narrow);
  } else {
    const bool offsets = spec_.encoding == GroupEncoding::kOffsets;
    int64_t end = 0;
    if (offsets) groups[0] = 0;
    for (size_t group = 0; group < sizes_.size(); ++group) {
      end = (offsets ? end : CeilDiv(end, kPaddedRows) * kPaddedRows) + sizes_[group];
      groups[group + (offsets ? 1 : 0)] = narrow(end);
    }
  }
}

absl::Status Problem::ResetResult() {
  if (arena_.array(d_).inline_result) return absl::OkStatus();
  if (spec_.accumulate) {
    std::copy(initial_d_.begin(), initial_d_.end(), arena_.Elements<float>(d_).begin());
  } else {
    const absl::Span<std::byte> d = arena_.Elements<std::byte>(d_);
    std::fill(d.begin(), d.end(), std::byte{0xff});  // NaN in every type of D.
  }
  return arena_.Upload(d_);
}

void Problem::BuildRequest() {
  const TensorView a = arena_.View(a_);
  const TensorView d = arena_.View(d_);
  if (spec_.op == Op::kQuantize) {
    request_ = ToRequest(QuantizeCall{.block = spec_.block, .x = a, .q = d, .sf = arena_.View(sfd_)});
    return;
  }
  const TensorView sfa = HasSfa(spec_) ? arena_.View(sfa_) : TensorView();
  TensorView groups;
  // The daemon reads group arrays before the launch, but for masked_m, which the GPU can read itself.
  if (IsGrouped(spec_.op)) {
    groups = spec_.op == Op::kMGroupedMasked ? arena_.View(groups_) : arena_.HostView(groups_);
  }
  const TensorView& b = weights_->b();
  const TensorView& sfb = weights_->sfb();
  if (spec_.op == Op::kDense) {
    request_ = ToRequest(DenseCall{spec_.scaling, a, sfa, b, sfb, d, spec_.accumulate});
  } else if (spec_.op == Op::kMGroupedContiguous) {
    request_ = ToRequest(MGroupedContiguousCall{spec_.scaling, a, sfa, b, sfb, d, spec_.encoding, groups});
  } else if (spec_.op == Op::kMGroupedMasked) {
    request_ = ToRequest(MGroupedMaskedCall{spec_.scaling, a, sfa, b, sfb, d, groups});
  } else {
    request_ = ToRequest(KGroupedCall{spec_.scaling, a, sfa, b, sfb, d, groups, spec_.accumulate});
  }
}

absl::StatusOr<reference::Error> Problem::Check(const v1::RunResponse& response) const {
  const bool inline_result = arena_.array(d_).inline_result;
  if (inline_result && response.d().size() != arena_.array(d_).byte_size) {
    return absl::DataLossError(
        absl::StrCat("d: expected ", arena_.array(d_).byte_size, " bytes, got ", response.d().size()));
  }
  if (!inline_result) {
    absl::Status status = arena_.Download(d_);
    if (status.ok() && spec_.op == Op::kQuantize) status = arena_.Download(sfd_);
    if (!status.ok()) return status;
  }
  const void* d = inline_result ? static_cast<const void*>(response.d().data()) : arena_.data(d_);
  if (spec_.op == Op::kQuantize) {
    const Arena::Array& sf_array = arena_.array(sfd_);
    if (inline_result && response.sf().size() != sf_array.byte_size) {
      return absl::DataLossError(
          absl::StrCat("sf: expected ", sf_array.byte_size, " bytes, got ", response.sf().size()));
    }
    const void* sf = inline_result ? static_cast<const void*>(response.sf().data()) : arena_.data(sfd_);
    const absl::Status status =
        reference::CheckQuantized(reference::RowMajor(arena_.data(a_), DType::kBf16, spec_.m, spec_.k), spec_.block,
                                  reference::RowMajor(d, DType::kE4m3, spec_.m, spec_.k),
                                  reference::RowMajor(sf, DType::kF32, sf_array.shape[0], sf_array.shape[1]));
    if (!status.ok()) return status;
    return reference::Error{.elements = spec_.m * spec_.k};
  }
  const reference::Error error = reference::CheckProducts(Products(d));
  const absl::Status status = reference::CheckLimits(error, reference::LimitsFor(spec_.d_dtype));
  if (!status.ok()) return status;
  return error;
}

std::vector<reference::Product> Problem::Products(const void* d) const {
  const std::vector<int64_t>& d_shape = arena_.array(d_).shape;
  const int64_t d_rows = d_shape.size() == 3 ? d_shape[0] * d_shape[1] : d_shape[0];
  const reference::Matrix d_matrix = reference::RowMajor(d, spec_.d_dtype, d_rows, spec_.n);
  reference::Matrix c;
  if (spec_.accumulate) c = reference::RowMajor(initial_d_.data(), DType::kF32, d_rows, spec_.n);
  const bool scaled = spec_.scaling != Scaling::kNone;
  reference::Matrix sfa;
  const int64_t a_rows = spec_.op == Op::kKGrouped ? spec_.m : d_rows;
  const void* const sfa_data = spec_.bf16_a ? quantized_a_.sf.data() : static_cast<const void*>(arena_.data(sfa_));
  const void* const a_data = spec_.bf16_a ? quantized_a_.q.data() : static_cast<const void*>(arena_.data(a_));
  if (scaled) sfa = reference::RowMajor(sfa_data, DType::kF32, a_rows, SfColumns(spec_));
  const reference::Scaled a{reference::RowMajor(a_data, OperandDType(spec_), a_rows, spec_.k), sfa, 1};
  switch (spec_.op) {
    case Op::kMGroupedContiguous:
      return reference::ContiguousProducts(a, weights_->operand(), d_matrix, spec_.groups, row_group_);
    case Op::kMGroupedMasked:
      return reference::MaskedProducts(a, weights_->operand(), d_matrix, sizes_);
    case Op::kKGrouped:
      return reference::KGroupedProducts({arena_.data(a_), weights_->b_data(), OperandDType(spec_), sfa,
                                          weights_->operand().sf, c, d_matrix, spec_.m, spec_.n},
                                         sizes_);
    default:
      return {{a, weights_->operand(), c, d_matrix}};
  }
}

}  // namespace gemmd
