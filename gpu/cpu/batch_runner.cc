// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/batch_runner.h"

#include "gpu/cpu/cpu_memory.h"
#include "gpu/cpu/quantize.h"
#include "gpu/cpu/transpose.h"
#include "gpu/device.h"

#include "absl/status/status.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <ctime>

namespace gemmd {
namespace {

// Bytes that one call copies: small enough to spread over threads, large enough to hide a call.
constexpr uint64_t kCopyChunkBytes = 1 << 20;

uint64_t NowNanos() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

bool SameMatrix(const HostMatrix& x, const HostMatrix& y) {
  return x.data == y.data && x.rows == y.rows && x.columns == y.columns && x.row_stride == y.row_stride &&
         x.column_stride == y.column_stride && x.dtype == y.dtype;
}

int64_t SfbRows(const Gemm& gemm) { return gemm.scaling == Scaling::k1D2D ? kScaleBlock : 1; }

// A product and its B, before A is in its final form.
struct PlannedProduct {
  ScaledView b;
  RowProduct product;
};

std::vector<PlannedProduct> DenseProducts(const Gemm& gemm, const JobOperands& operands) {
  PlannedProduct planned;
  planned.b = {operands.Matrix(OperandIndex::kB), operands.Matrix(OperandIndex::kSfb), SfbRows(gemm)};
  planned.product.a = {operands.Matrix(OperandIndex::kA), operands.Matrix(OperandIndex::kSfa), 1};
  planned.product.d = operands.Matrix(OperandIndex::kD);
  return {planned};
}

std::vector<PlannedProduct> MGroupedProducts(const Gemm& gemm, const JobOperands& operands) {
  const bool masked = gemm.op == Op::kMGroupedMasked;
  std::vector<PlannedProduct> products;
  products.reserve(gemm.segments.size());
  for (const RowSegment& segment : gemm.segments) {
    const int64_t rows = segment.end - segment.begin;
    const auto rows_of = [&](OperandIndex index) {
      const HostMatrix matrix = masked ? operands.Matrix(index, segment.group) : operands.Matrix(index);
      return matrix.present() ? matrix.Window(segment.begin, rows, 0, matrix.columns) : matrix;
    };
    PlannedProduct planned;
    planned.b = {operands.Matrix(OperandIndex::kB, segment.group), operands.Matrix(OperandIndex::kSfb, segment.group),
                 SfbRows(gemm)};
    planned.product.a = {rows_of(OperandIndex::kA), rows_of(OperandIndex::kSfa), 1};
    planned.product.d = rows_of(OperandIndex::kD);
    products.push_back(planned);
  }
  return products;
}

std::vector<PlannedProduct> KGroupedProducts(const Gemm& gemm, const JobOperands& operands) {
  std::vector<PlannedProduct> products;
  products.reserve(gemm.ks.size());
  int64_t k_begin = 0;
  int64_t sf_begin = 0;
  for (size_t group = 0; group < gemm.ks.size(); ++group) {
    const int64_t k = gemm.ks[group];
    const int64_t sf_columns = CeilDiv(k, kScaleBlock);
    const auto scales_of = [&](OperandIndex index) {
      const HostMatrix sf = operands.Matrix(index);
      return sf.present() ? sf.Window(0, sf.rows, sf_begin, sf_columns) : sf;
    };
    PlannedProduct planned;
    planned.product.a = {operands.Flat(OperandIndex::kA, gemm.m * k_begin, gemm.m, k), scales_of(OperandIndex::kSfa),
                         1};
    planned.b = {operands.Flat(OperandIndex::kB, gemm.n * k_begin, gemm.n, k), scales_of(OperandIndex::kSfb), 1};
    planned.product.d = operands.Matrix(OperandIndex::kD, static_cast<int64_t>(group));
    products.push_back(planned);
    k_begin += k;
    sf_begin += sf_columns;
  }
  return products;
}

std::vector<PlannedProduct> PlanProducts(const Gemm& gemm, const JobOperands& operands) {
  if (gemm.op == Op::kDense) return DenseProducts(gemm, operands);
  if (gemm.op == Op::kKGrouped) return KGroupedProducts(gemm, operands);
  return MGroupedProducts(gemm, operands);
}

}  // namespace

BatchRunner::BatchRunner(InstructionSet set, int slots, uint64_t scratch_limit_bytes)
    : set_(set), scratch_limit_bytes_(scratch_limit_bytes), tiles_(set, slots) {}

BatchResult BatchRunner::Run(const Batch& batch, ThreadPool* pool) {
  BatchResult result;
  result.launched_ns = NowNanos();
  std::vector<RunningJob> running;
  running.reserve(batch.jobs.size());
  for (const Job& job : batch.jobs) {
    running.push_back({JobOperands(job.gemm, scratch_limit_bytes_), {}});
    Start(job.gemm, running.back(), pool);
  }
  tiles_.Multiply(weights_, pool);
  weights_.clear();
  result.reasons.reserve(batch.jobs.size());
  for (RunningJob& job : running) {
    if (job.reason.rule == Rule::kNone) job.reason = job.operands.Store();
    result.reasons.push_back(job.reason);
  }
  result.finished_ns = NowNanos();
  return result;
}

void BatchRunner::Start(const Gemm& gemm, RunningJob& job, ThreadPool* pool) {
  if (gemm.op == Op::kCopy) {
    job.reason = Copy(gemm, pool);
    return;
  }
  job.reason = job.operands.Load();
  if (job.reason.rule != Rule::kNone) return;
  if (gemm.op == Op::kQuantize) {
    Quantize(gemm, job.operands, pool);
  } else if (gemm.op == Op::kTranspose) {
    Transpose(job.operands, pool);
  } else {
    job.reason = AddProducts(gemm, job.operands, pool);
  }
}

Reason BatchRunner::Copy(const Gemm& gemm, ThreadPool* pool) const {
  const Operand& from = gemm.operand(OperandIndex::kA);
  const Operand& to = gemm.operand(OperandIndex::kD);
  auto& source = static_cast<CpuMemory&>(*from.memory);
  auto& destination = static_cast<CpuMemory&>(*to.memory);
  const auto byte_size = static_cast<uint64_t>(from.shape[0]);
  if (source.data() != nullptr && destination.data() != nullptr) {
    const auto chunks = static_cast<int64_t>((byte_size + kCopyChunkBytes - 1) / kCopyChunkBytes);
    ForEach(pool, chunks, [&](int64_t chunk, int) {
      const uint64_t begin = static_cast<uint64_t>(chunk) * kCopyChunkBytes;
      std::memcpy(destination.data() + to.offset + begin, source.data() + from.offset + begin,
                  std::min(kCopyChunkBytes, byte_size - begin));
    });
    return {};
  }
  if (destination.data() != nullptr) {
    const absl::Status status = source.ReadBytes(from.offset, byte_size, destination.data() + to.offset);
    return FailureReason(JobField::kA, status);
  }
  std::vector<std::byte> buffer(source.data() != nullptr ? 0 : std::min(kCopyChunkBytes, byte_size));
  for (uint64_t begin = 0; begin < byte_size; begin += kCopyChunkBytes) {
    const uint64_t count = std::min(kCopyChunkBytes, byte_size - begin);
    const std::byte* bytes = buffer.data();
    if (source.data() != nullptr) {
      bytes = source.data() + from.offset + begin;
    } else if (const absl::Status status = source.ReadBytes(from.offset + begin, count, buffer.data()); !status.ok()) {
      return FailureReason(JobField::kA, status);
    }
    const absl::Status status = destination.WriteBytes(to.offset + begin, count, bytes);
    if (!status.ok()) return FailureReason(JobField::kD, status);
  }
  return {};
}

void BatchRunner::Quantize(const Gemm& gemm, JobOperands& operands, ThreadPool* pool) const {
  const QuantizeViews views{operands.Matrix(OperandIndex::kA), operands.Matrix(OperandIndex::kD),
                            operands.Matrix(OperandIndex::kSfd),
                            gemm.quantize_block == QuantizeBlock::k128x128 ? kScaleBlock : 1};
  ForEach(pool, CeilDiv(views.x.rows, views.block_rows),
          [&](int64_t sf_row, int) { QuantizeBlockRow(set_, views, sf_row); });
  operands.AddOutput(OperandIndex::kD, views.q);
  operands.AddOutput(OperandIndex::kSfd, views.sf);
}

void BatchRunner::Transpose(JobOperands& operands, ThreadPool* pool) const {
  const HostMatrix from = operands.Matrix(OperandIndex::kA);
  const HostMatrix to = operands.Matrix(OperandIndex::kD);
  ForEach(pool, CeilDiv(to.rows, kTransposeRows), [&](int64_t stripe, int) { TransposeStripe(from, to, stripe); });
  operands.AddOutput(OperandIndex::kD, to);
}

Reason BatchRunner::AddProducts(const Gemm& gemm, JobOperands& operands, ThreadPool* pool) {
  std::vector<PlannedProduct> planned = PlanProducts(gemm, operands);
  for (PlannedProduct& item : planned) {
    item.product.accumulate = gemm.accumulate;
    const bool scaled = gemm.scaling != Scaling::kNone;
    if (!scaled || item.product.a.values.dtype != DType::kBf16) continue;
    if (QuantizeRows(item.product, operands, pool)) continue;
    Reason reason;
    reason.field = JobField::kA;
    reason.rule = Rule::kOutOfMemory;
    reason.got = item.product.a.values.rows * item.product.a.values.columns;
    return reason;
  }
  for (const PlannedProduct& item : planned) {
    operands.AddOutput(OperandIndex::kD, item.product.d);
    AddProduct(item.b, item.product);
  }
  return {};
}

void BatchRunner::AddProduct(const ScaledView& b, const RowProduct& product) {
  if (product.d.rows == 0 || b.values.rows == 0) return;
  // Adding an empty sum would still turn -0 into +0.
  if (product.accumulate && b.values.columns == 0) return;
  // Jobs of a batch name the same weights in the same order, so the match follows the last one.
  for (size_t i = 0; i < weights_.size(); ++i) {
    const size_t candidate = (next_weight_ + i) % weights_.size();
    WeightProducts& weight = weights_[candidate];
    if (SameMatrix(weight.b.values, b.values) && SameMatrix(weight.b.sf, b.sf)) {
      weight.products.push_back(product);
      next_weight_ = candidate + 1;
      return;
    }
  }
  weights_.push_back({b, {product}});
  next_weight_ = weights_.size();
}

bool BatchRunner::QuantizeRows(RowProduct& product, JobOperands& operands, ThreadPool* pool) const {
  const HostMatrix x = product.a.values;
  const int64_t sf_columns = CeilDiv(x.columns, kScaleBlock);
  std::byte* q = operands.Allocate(static_cast<uint64_t>(x.rows * x.columns));
  std::byte* sf = operands.Allocate(static_cast<uint64_t>(x.rows * sf_columns) * sizeof(float));
  if (q == nullptr || sf == nullptr) return false;
  const QuantizeViews views{
      x, {q, DType::kE4m3, x.rows, x.columns, x.columns, 1}, {sf, DType::kF32, x.rows, sf_columns, sf_columns, 1}, 1};
  ForEach(pool, x.rows, [&](int64_t row, int) { QuantizeBlockRow(set_, views, row); });
  product.a = {views.q, views.sf, 1};
  return true;
}

}  // namespace gemmd
