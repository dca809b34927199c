// SPDX-License-Identifier: Apache-2.0
#include "gpu/batch_meter.h"

#include <algorithm>
#include <vector>

namespace gemmd {
namespace {

bool IsProduct(Op op) {
  return op == Op::kDense || op == Op::kMGroupedContiguous || op == Op::kMGroupedMasked || op == Op::kKGrouped;
}

bool HasRowGroups(Op op) { return op == Op::kMGroupedContiguous || op == Op::kMGroupedMasked; }

// Rows of A that belong to a group.
int64_t UsefulRows(const Gemm& gemm) {
  if (!HasRowGroups(gemm.op)) return gemm.m;
  int64_t rows = 0;
  for (const RowSegment& segment : gemm.segments) rows += segment.end - segment.begin;
  return rows;
}

int64_t AllRows(const Gemm& gemm) { return gemm.op == Op::kMGroupedMasked ? gemm.groups * gemm.m : gemm.m; }

uint64_t ByteSizeOf(const Operand& operand) {
  if (!operand.present()) return 0;
  auto bytes = static_cast<uint64_t>(ByteSize(operand.dtype));
  for (int i = 0; i < operand.rank; ++i) bytes *= static_cast<uint64_t>(operand.shape[static_cast<size_t>(i)]);
  return bytes;
}

// Its share of an operand of which each of `all` rows or groups has the same.
uint64_t ShareOf(const Operand& operand, int64_t used, int64_t all) {
  return all == 0 ? 0 : ByteSizeOf(operand) / static_cast<uint64_t>(all) * static_cast<uint64_t>(used);
}

struct Bytes {
  uint64_t in = 0;
  uint64_t out = 0;
};

// Without the weights of operations that may share them.
Bytes BytesOf(const Gemm& gemm) {
  const int64_t rows = UsefulRows(gemm);
  const int64_t all = AllRows(gemm);
  const auto bytes = [&](OperandIndex index) { return ShareOf(gemm.operand(index), rows, all); };
  Bytes moved{bytes(OperandIndex::kA) + bytes(OperandIndex::kSfa), bytes(OperandIndex::kD)};
  if (gemm.op == Op::kKGrouped) {
    moved.in += ByteSizeOf(gemm.operand(OperandIndex::kB)) + ByteSizeOf(gemm.operand(OperandIndex::kSfb));
  }
  moved.out += ByteSizeOf(gemm.operand(OperandIndex::kSfd));
  if (gemm.accumulate) moved.in += moved.out;
  return moved;
}

// How many groups have rows, of all jobs together: these matrices B are read.
int64_t GroupsOf(const Batch& batch) {
  const Gemm& first = batch.jobs.front().gemm;
  if (first.op == Op::kKGrouped) return first.groups;
  if (!HasRowGroups(first.op)) return 1;
  std::vector<bool> used(static_cast<size_t>(first.groups));
  for (const Job& job : batch.jobs) {
    for (const RowSegment& segment : job.gemm.segments) used[static_cast<size_t>(segment.group)] = true;
  }
  return std::count(used.begin(), used.end(), true);
}

uint64_t WeightBytes(const Gemm& gemm, int64_t groups) {
  if (!IsProduct(gemm.op) || gemm.op == Op::kKGrouped) return 0;
  const int64_t all = HasRowGroups(gemm.op) ? gemm.groups : 1;
  return ShareOf(gemm.operand(OperandIndex::kB), groups, all) + ShareOf(gemm.operand(OperandIndex::kSfb), groups, all);
}

void CountJob(WorkerCounts& counts, const Gemm& gemm) {
  const Bytes bytes = BytesOf(gemm);
  Count(counts.operand_bytes[static_cast<size_t>(Direction::kIn)], bytes.in);
  Count(counts.operand_bytes[static_cast<size_t>(Direction::kOut)], bytes.out);
  if (!IsProduct(gemm.op)) return;
  const ProductType type = gemm.scaling == Scaling::kNone ? ProductType::kBf16 : ProductType::kE4m3;
  CountDouble(counts.flops_bits[static_cast<size_t>(gemm.op)][static_cast<size_t>(type)], Flops(gemm));
  const int64_t useful = UsefulRows(gemm);
  Count(counts.rows[static_cast<size_t>(RowKind::kUseful)], static_cast<uint64_t>(useful));
  Count(counts.rows[static_cast<size_t>(RowKind::kPadding)], static_cast<uint64_t>(AllRows(gemm) - useful));
}

}  // namespace

void BatchMeter::Start(uint64_t now_ns) {
  absl::MutexLock lock(&mutex_);
  if (on_device_++ == 0) busy_since_ns_ = now_ns;
}

void BatchMeter::Finish(const Batch& batch, const BatchResult& result) {
  {
    absl::MutexLock lock(&mutex_);
    if (--on_device_ == 0) Count(counts_.busy_ns, result.finished_ns - std::min(result.finished_ns, busy_since_ns_));
  }
  const Gemm& first = batch.jobs.front().gemm;
  const uint64_t duration_ns = result.finished_ns - std::min(result.finished_ns, result.launched_ns);
  Observe(counts_.batch_duration[static_cast<size_t>(first.op)], duration_ns);
  bool any_success = false;
  int64_t rows = 0;
  for (size_t i = 0; i < batch.jobs.size(); ++i) {
    const Gemm& gemm = batch.jobs[i].gemm;
    rows += UsefulRows(gemm);
    if (result.reasons[i].rule != Rule::kNone) continue;
    any_success = true;
    CountJob(counts_, gemm);
  }
  if (first.op == Op::kCopy) return;
  const int64_t groups = GroupsOf(batch);
  if (any_success) Count(counts_.operand_bytes[static_cast<size_t>(Direction::kIn)], WeightBytes(first, groups));
  Observe(counts_.batch_jobs, batch.jobs.size());
  Observe(counts_.batch_groups, static_cast<uint64_t>(groups));
  Observe(counts_.batch_rows, static_cast<uint64_t>(rows));
  Count(counts_.batch_closes[static_cast<size_t>(batch.close)]);
}

}  // namespace gemmd
