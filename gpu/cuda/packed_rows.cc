// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/packed_rows.h"

#include <algorithm>
#include <utility>

namespace gemmd {
namespace {

constexpr int64_t kLaunchBytes = int64_t{8} << 20;  // What memory moves in the 3 us that a launch takes.

}  // namespace

SegmentList SegmentsOf(const Gemm& gemm) {
  const int k = static_cast<int>(gemm.k);
  if (gemm.op == Op::kDense) return {{0, 0, 0, static_cast<int>(gemm.m), k, 0}};
  SegmentList segments;
  segments.reserve(gemm.segments.size());
  for (const RowSegment& rows : gemm.segments) {
    const int group = static_cast<int>(rows.group);
    segments.push_back({gemm.op == Op::kMGroupedMasked ? group : 0, group, static_cast<int>(rows.begin),
                        static_cast<int>(rows.end), k, 0});
  }
  return segments;
}

PackedRows::PackedRows(const Batch& batch) {
  for (size_t job = 0; job < batch.jobs.size(); ++job) {
    for (const Segment& rows : SegmentsOf(batch.jobs[job].gemm)) {
      if (rows.row_begin < rows.row_end) runs_.push_back({job, rows, 0});
    }
  }
  std::stable_sort(runs_.begin(), runs_.end(),
                   [](const PackedRun& x, const PackedRun& y) { return x.rows.group < y.rows.group; });
  for (PackedRun& run : runs_) {
    const int begin = static_cast<int>(rows_);
    run.packed = rows_;
    rows_ += run.rows.row_end - run.rows.row_begin;
    if (segments_.empty() || segments_.back().group != run.rows.group)
      segments_.push_back({0, run.rows.group, begin, begin, run.rows.k, 0});
    segments_.back().row_end = static_cast<int>(rows_);
  }
}

bool PackingSaves(const Batch& batch, const PackedRows& packed) {
  const Gemm& gemm = batch.jobs[0].gemm;
  const auto bytes = [&](OperandIndex index) { return ByteSize(gemm.operand(index).dtype); };
  const int64_t row_bytes = gemm.k * bytes(OperandIndex::kA) + gemm.n * bytes(OperandIndex::kD);
  const int64_t group_bytes = gemm.n * gemm.k * bytes(OperandIndex::kB);
  const auto shared_groups = static_cast<int64_t>(packed.runs().size() - packed.segments().size());
  const int64_t saved = static_cast<int64_t>(batch.jobs.size() - 1) * kLaunchBytes + shared_groups * group_bytes;
  return 2 * packed.rows() * row_bytes <= saved;
}

void RowMoves::AddRows(char* to, int64_t to_pitch, const char* from, int64_t from_pitch, int64_t width, int64_t rows) {
  if (width > 0)
    moves_.push_back({from, to, from_pitch, 1, to_pitch, 1, static_cast<int>(rows), static_cast<int>(width)});
}

void RowMoves::AddElements(char* to, int64_t to_row, int64_t to_column, const char* from, int64_t from_row,
                           int64_t from_column, int64_t rows, int64_t columns) {
  piece_ = 4;
  // Neighbouring threads take neighbouring elements of the source.
  if (from_row < from_column) {
    std::swap(from_row, from_column);
    std::swap(to_row, to_column);
    std::swap(rows, columns);
  }
  moves_.push_back({from, to, from_row * piece_, from_column * piece_, to_row * piece_, to_column * piece_,
                    static_cast<int>(rows), static_cast<int>(columns)});
}

void RowMoves::AddBytes(char* to, int64_t to_row, int64_t to_column, const char* from, int64_t from_row,
                        int64_t from_column, int64_t rows, int64_t columns) {
  single_bytes_ = true;
  moves_.push_back(
      {from, to, from_row, from_column, to_row, to_column, static_cast<int>(rows), static_cast<int>(columns)});
}

int RowMoves::unit() const {
  if (piece_ > 1 || single_bytes_) return piece_;
  uintptr_t bits = 0;
  for (const RowMove& move : moves_) {
    bits |= reinterpret_cast<uintptr_t>(move.from) | reinterpret_cast<uintptr_t>(move.to) |
            static_cast<uintptr_t>(move.from_row) | static_cast<uintptr_t>(move.to_row) |
            static_cast<uintptr_t>(move.columns);
  }
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

std::vector<RowMove> RowMoves::InPieces() const {
  std::vector<RowMove> moves = moves_;
  const int size = unit() / piece_;
  for (RowMove& move : moves) {
    move.columns /= size;
    move.from_column *= size;
    move.to_column *= size;
  }
  return moves;
}

}  // namespace gemmd
