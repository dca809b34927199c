// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_plan.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

namespace gemmd {
namespace {

// Of E4M3 rows, in elements: what products take (a row pitch of 16 bytes).
constexpr int64_t kRowMultiple = 16;

int64_t CeilDiv(int64_t value, int64_t divisor) { return value / divisor + (value % divisor != 0 ? 1 : 0); }

absl::Status Bad(absl::string_view field, absl::string_view expected, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": expected ", expected, ", got ", got));
}

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ","), "]"); }

bool IsQuantized(const TensorPlan& plan) { return plan.quantize != QuantizeBlock::kUnset; }

// Rows and columns of one matrix of the tensor.
int64_t TensorRows(const TensorPlan& plan) { return plan.transpose ? plan.columns : plan.rows; }
int64_t TensorColumns(const TensorPlan& plan) { return plan.transpose ? plan.rows : plan.columns; }
int64_t BlockRows(const TensorPlan& plan) { return plan.quantize == QuantizeBlock::k128x128 ? kScaleBlock : 1; }
int64_t ScaleRows(const TensorPlan& plan) { return CeilDiv(TensorRows(plan), BlockRows(plan)); }
int64_t ScaleColumns(const TensorPlan& plan) { return CeilDiv(TensorColumns(plan), kScaleBlock); }

absl::Status CheckContent(const TensorWish& wish, const ContentLayout& content) {
  if (content.shape.empty() || content.shape.size() > kMaxRank) {
    return Bad("content", absl::StrCat("rank 1 to ", kMaxRank), absl::StrCat("rank ", content.shape.size()));
  }
  if (std::any_of(content.shape.begin(), content.shape.end(), [](int64_t extent) { return extent < 1; })) {
    return Bad("content", "extents of at least 1", ShapeText(content.shape));
  }
  // Beyond this, products of extents cannot overflow.
  if (absl::Status status = ByteSizeOf(content.dtype, content.shape).status(); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat("content: ", status.message()));
  }
  const absl::string_view dtype = Name(content.dtype);
  const bool is_float = content.dtype == DType::kBf16 || content.dtype == DType::kF32;
  if (wish.quantize != QuantizeBlock::kUnset && !is_float) return Bad("quantize", "content of bf16 or f32", dtype);
  if (wish.transpose && !is_float && content.dtype != DType::kE4m3) {
    return Bad("transpose", "content of e4m3, bf16 or f32", dtype);
  }
  if ((wish.transpose || wish.quantize != QuantizeBlock::kUnset) && content.shape.size() < 2) {
    return Bad(wish.transpose ? "transpose" : "quantize", "content of rank 2 or 3", "rank 1");
  }
  return absl::OkStatus();
}

// What was asked for explicitly must be what comes out.
absl::Status CheckWish(const TensorSpec& asked, const TensorSpec& made) {
  if (asked.dtype != DType::kNone && asked.dtype != made.dtype) {
    return Bad("dtype", absl::StrCat(Name(made.dtype), " of this content"), Name(asked.dtype));
  }
  if (!asked.shape.empty() && asked.shape != made.shape) {
    return Bad("shape", absl::StrCat(ShapeText(made.shape), " of this content"), ShapeText(asked.shape));
  }
  return absl::OkStatus();
}

int64_t ChunkRows(const TensorPlan& plan) {
  // Blocks of 128 rows, or of columns when transposed.
  const int64_t multiple = IsQuantized(plan) ? kScaleBlock : 1;
  const int64_t row_bytes = plan.columns * ByteSize(plan.dtype);
  const int64_t rows = std::max<int64_t>(kContentChunkBytes / row_bytes / multiple, 1) * multiple;
  return std::min(rows, plan.rows);
}

ContentChunk ChunkAt(const TensorPlan& plan, int64_t group, int64_t row) {
  const auto row_bytes = static_cast<uint64_t>(plan.columns * ByteSize(plan.dtype));
  ContentChunk chunk{group, row, std::min(plan.chunk_rows, plan.rows - row), 0, 0};
  chunk.offset = static_cast<uint64_t>(group * plan.rows + row) * row_bytes;
  chunk.byte_size = static_cast<uint64_t>(chunk.rows) * row_bytes;
  return chunk;
}

// `row_stride` elements from one row to the next.
OperandDescriptor Window(const RegionOffset& at, DType dtype, int64_t rows, int64_t columns, int64_t row_stride) {
  OperandDescriptor operand;
  operand.region = at.region;
  operand.offset = at.offset;
  operand.dtype = dtype;
  operand.rank = 2;
  operand.shape[0] = rows;
  operand.shape[1] = columns;
  operand.strides[0] = row_stride;
  operand.strides[1] = 1;
  return operand;
}

// Where the chunk goes in the tensor: rows, or columns when transposed.
OperandDescriptor TargetOf(const TensorPlan& plan, const ContentChunk& chunk, uint64_t region) {
  const int64_t rows = TensorRows(plan);
  const int64_t columns = TensorColumns(plan);
  const int64_t first = chunk.group * rows * columns + (plan.transpose ? chunk.row : chunk.row * columns);
  const RegionOffset at{region, static_cast<uint64_t>(first * ByteSize(plan.tensor.dtype))};
  return plan.transpose ? Window(at, plan.tensor.dtype, rows, chunk.rows, columns)
                        : Window(at, plan.tensor.dtype, chunk.rows, columns, columns);
}

OperandDescriptor ScalesOf(const TensorPlan& plan, const ContentChunk& chunk, uint64_t region) {
  const int64_t rows = ScaleRows(plan);
  const int64_t columns = ScaleColumns(plan);
  const int64_t block_rows = BlockRows(plan);
  const int64_t begin = plan.transpose ? chunk.row / kScaleBlock : chunk.row / block_rows * columns;
  const RegionOffset at{region, static_cast<uint64_t>((chunk.group * rows * columns + begin) * ByteSize(DType::kF32))};
  return plan.transpose ? Window(at, DType::kF32, rows, CeilDiv(chunk.rows, kScaleBlock), columns)
                        : Window(at, DType::kF32, CeilDiv(chunk.rows, block_rows), columns, columns);
}

JobDescriptor TransposeJob(const OperandDescriptor& from, const OperandDescriptor& to) {
  JobDescriptor job;
  job.op = Op::kTranspose;
  job.operand(OperandIndex::kA) = from;
  job.operand(OperandIndex::kD) = to;
  return job;
}

}  // namespace

absl::StatusOr<TensorPlan> PlanTensor(const TensorWish& wish, const ContentLayout& content) {
  if (absl::Status status = CheckContent(wish, content); !status.ok()) return status;
  TensorPlan plan;
  plan.tensor = wish.spec;
  plan.tensor.dtype = wish.quantize == QuantizeBlock::kUnset ? content.dtype : DType::kE4m3;
  plan.tensor.shape = content.shape;
  const size_t rank = content.shape.size();
  if (wish.transpose) std::swap(plan.tensor.shape[rank - 2], plan.tensor.shape[rank - 1]);
  if (absl::Status status = CheckWish(wish.spec, plan.tensor); !status.ok()) return status;
  plan.transpose = wish.transpose;
  plan.quantize = wish.quantize;
  if (!plan.transpose && !IsQuantized(plan)) {
    plan.rows = std::accumulate(content.shape.begin(), content.shape.end(), ByteSize(content.dtype),
                                std::multiplies<int64_t>());
    plan.chunk_rows = ChunkRows(plan);
    return plan;
  }
  plan.dtype = content.dtype;
  plan.groups = rank == 3 ? content.shape[0] : 1;
  plan.rows = content.shape[rank - 2];
  plan.columns = content.shape[rank - 1];
  plan.chunk_rows = ChunkRows(plan);
  if (!IsQuantized(plan)) return plan;
  if (TensorColumns(plan) % kRowMultiple != 0) {
    return Bad("quantize", absl::StrCat("rows of a multiple of ", kRowMultiple, " elements"),
               absl::StrCat(TensorColumns(plan)));
  }
  TensorSpec scales = wish.spec;
  scales.dtype = DType::kF32;
  scales.shape = {ScaleRows(plan), ScaleColumns(plan)};
  if (rank == 3) scales.shape.insert(scales.shape.begin(), plan.groups);
  if (!scales.name.empty()) scales.name += kScalesSuffix;
  plan.scales = std::move(scales);
  return plan;
}

ContentChunk FirstChunk(const TensorPlan& plan) { return ChunkAt(plan, 0, 0); }

std::optional<ContentChunk> NextChunk(const TensorPlan& plan, const ContentChunk& chunk) {
  const int64_t row = chunk.row + chunk.rows;
  if (row < plan.rows) return ChunkAt(plan, chunk.group, row);
  if (chunk.group + 1 < plan.groups) return ChunkAt(plan, chunk.group + 1, 0);
  return std::nullopt;
}

uint64_t ScratchBytes(const TensorPlan& plan, const ContentChunk& chunk) {
  return plan.transpose && IsQuantized(plan) ? chunk.byte_size : 0;
}

std::vector<JobDescriptor> JobsOf(const TensorPlan& plan, const ContentChunk& chunk, const ChunkPlaces& places) {
  if (!plan.transpose && !IsQuantized(plan)) {
    return {MakeCopyJob({places.content, {places.tensor, chunk.offset}, chunk.byte_size, 0, 0})};
  }
  const OperandDescriptor content = Window(places.content, plan.dtype, chunk.rows, plan.columns, plan.columns);
  const OperandDescriptor target = TargetOf(plan, chunk, places.tensor);
  if (!IsQuantized(plan)) return {TransposeJob(content, target)};
  const OperandDescriptor turned = Window(places.scratch, plan.dtype, plan.columns, chunk.rows, chunk.rows);
  JobDescriptor quantize;
  quantize.op = Op::kQuantize;
  quantize.quantize_block = plan.quantize;
  quantize.operand(OperandIndex::kA) = plan.transpose ? turned : content;
  quantize.operand(OperandIndex::kD) = target;
  quantize.operand(OperandIndex::kSfd) = ScalesOf(plan, chunk, places.scales);
  if (!plan.transpose) return {quantize};
  return {TransposeJob(content, turned), quantize};
}

}  // namespace gemmd
