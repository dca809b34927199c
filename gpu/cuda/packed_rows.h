// SPDX-License-Identifier: Apache-2.0
// The rows of several jobs that multiply with the same weights, packed into matrices that one launch multiplies: all
// rows of one group side by side, whoever they belong to. Pure; used by the batch launcher.
#ifndef GEMMD_GPU_CUDA_PACKED_ROWS_H_
#define GEMMD_GPU_CUDA_PACKED_ROWS_H_

#include "gpu/cuda/gemm_call.h"
#include "gpu/job.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {

// Which rows of D a job writes, as segments of its own matrices.
SegmentList SegmentsOf(const Gemm& gemm);

// Rows of one job and group, and where they begin in the packed matrices.
struct PackedRun {
  size_t job = 0;
  Segment rows{};
  int64_t packed = 0;
};

class PackedRows {
 public:
  explicit PackedRows(const Batch& batch);

  int64_t rows() const { return rows_; }
  const std::vector<PackedRun>& runs() const { return runs_; }
  // Of the packed matrices: one for each group.
  const SegmentList& segments() const { return segments_; }

 private:
  std::vector<PackedRun> runs_;
  SegmentList segments_;
  int64_t rows_ = 0;
};

// Whether packing the batch moves fewer bytes than sharing a launch saves.
bool PackingSaves(const Batch& batch, const PackedRows& packed);

// Moves between places in GPU memory, for one launch of MoveRows.
class RowMoves {
 public:
  // `rows` rows of `width` bytes; pitches in bytes.
  void AddRows(char* to, int64_t to_pitch, const char* from, int64_t from_pitch, int64_t width, int64_t rows);
  // rows x columns elements of 4 bytes; strides in elements.
  void AddElements(char* to, int64_t to_row, int64_t to_column, const char* from, int64_t from_row, int64_t from_column,
                   int64_t rows, int64_t columns);
  // rows x columns single bytes; strides in bytes. Not together with AddElements.
  void AddBytes(char* to, int64_t to_row, int64_t to_column, const char* from, int64_t from_row, int64_t from_column,
                int64_t rows, int64_t columns);

  // What all moves can be cut into, in bytes: 16, 4 or 1; and the moves in pieces of that.
  int unit() const;
  std::vector<RowMove> InPieces() const;

 private:
  std::vector<RowMove> moves_;  // Columns of piece_ bytes.
  int piece_ = 1;
  bool single_bytes_ = false;  // Neighbours of a move are apart, so pieces must not grow.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_PACKED_ROWS_H_
