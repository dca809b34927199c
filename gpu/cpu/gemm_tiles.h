// SPDX-License-Identifier: Apache-2.0
// The matrix products of a batch, as tiles on a BLAS. Used by CpuDevice.
//
// A tile is a panel of B rows (columns of D) times some rows of A: it dequantizes the panel, stretch of K by stretch of
// K, and multiplies every row block of the tile with it by one serial cblas_sgemm each; so a panel is dequantized once
// however many jobs use it. Row blocks start at the job's own rows and have a fixed size, so the calls that make a
// job's result, and its bits, do not depend on the batch, on the number of threads, or on who computes what.
#ifndef GEMMD_GPU_CPU_GEMM_TILES_H_
#define GEMMD_GPU_CPU_GEMM_TILES_H_

#include "gpu/cpu/host_matrix.h"
#include "gpu/cpu/instruction_set.h"
#include "gpu/cpu/scratch.h"
#include "gpu/cpu/thread_pool.h"

#include "absl/types/span.h"

#include <cstdint>
#include <vector>

namespace gemmd {

// D = A * B^T (+ D): rows of one job that use one B. a.values and d have the same number of rows.
struct RowProduct {
  ScaledView a;
  HostMatrix d;
  bool accumulate = false;
};

// One B [N,K] and everything that is multiplied with it.
struct WeightProducts {
  ScaledView b;
  std::vector<RowProduct> products;
};

class GemmTiles {
 public:
  GemmTiles(InstructionSet set, int slots);

  // False if there is no memory for the slots' scratch.
  bool Allocate();

  // Computes all products; on this thread alone (slot 0) if `pool` is null. One call at a time.
  void Multiply(absl::Span<const WeightProducts> weights, ThreadPool* pool);

 private:
  // Rows [begin, end) of one job, at most kBlockRows.
  struct RowBlock {
    const RowProduct* product;
    int64_t begin;
    int64_t end;
  };
  // Row blocks [first, last) times the panel that starts at row `panel` of B.
  struct Tile {
    const WeightProducts* weight;
    int64_t panel;
    size_t first;
    size_t last;
  };

  void Plan(absl::Span<const WeightProducts> weights, int slots);
  void AddTiles(const WeightProducts& weight, size_t first_block, int64_t tile_rows);
  void Compute(const Tile& tile, int slot);
  void LoadPanel(const ScaledView& matrix, int64_t row, int64_t rows, int64_t k, int64_t depth, float* panel) const;
  void Store(const RowBlock& block, int64_t column, int64_t columns, const float* sums) const;

  InstructionSet set_;
  std::vector<Scratch> scratch_;  // By slot.
  std::vector<RowBlock> blocks_;  // Of the current call; kept for their memory.
  std::vector<Tile> tiles_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_GEMM_TILES_H_
