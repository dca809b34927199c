// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/gemm_tiles.h"

#include "gpu/cpu/dequantize.h"
#include "proto/job.h"

#include <cblas.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace gemmd {
namespace {

// Sizes of a tile in floats; its scratch (below) stays near a second-level cache. They are part of the order of
// summation: never let them depend on M or on the number of threads.
constexpr int64_t kPanelRows = 256;  // Rows of B: a multiple of 128. More rows dequantize A less often.
constexpr int64_t kDepth = 512;      // K at a time: a multiple of 128.
constexpr int64_t kBlockRows = 256;  // Rows of A in one call.
constexpr int64_t kTileRows = 1024;  // Rows of A in a tile, at most: a panel is dequantized once for so many.
constexpr int64_t kDotRows = 4;      // Row blocks up to this size are matrix-vector products.

constexpr int64_t kPanelFloats = kPanelRows * kDepth;
constexpr int64_t kBlockFloats = kBlockRows * kDepth;
constexpr int64_t kSumFloats = kTileRows * kPanelRows;
// Sums of row blocks lie one after another; each takes all the columns of a panel.
static_assert(kTileRows >= kBlockRows);

// Tiles for each thread at which uneven ones balance.
constexpr int64_t kTilesPerSlot = 3;

struct BlockProduct {
  const float* a = nullptr;      // [rows, depth]
  const float* panel = nullptr;  // [columns, depth]
  float* sums = nullptr;         // [rows, columns]
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t depth = 0;
  bool first = false;
};

// sums = a * panel^T, added to sums unless this is the first stretch of K. All extents fit BLAS's 32-bit integers: they
// are bounded by the tile's.
void Multiply(const BlockProduct& product) {
  const auto rows = static_cast<int>(product.rows);
  const auto columns = static_cast<int>(product.columns);
  const auto depth = static_cast<int>(product.depth);
  if (product.rows > kDotRows) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, columns, depth, 1.0f, product.a, depth, product.panel,
                depth, product.first ? 0.0f : 1.0f, product.sums, columns);
    return;
  }
  if (product.first) std::memset(product.sums, 0, static_cast<size_t>(product.rows * product.columns) * sizeof(float));
  // Packing a panel for so few rows costs more than the product.
  for (int64_t row = 0; row < product.rows; ++row) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, columns, depth, 1.0f, product.panel, depth, product.a + row * depth, 1,
                1.0f, product.sums + row * columns, 1);
  }
}

}  // namespace

GemmTiles::GemmTiles(InstructionSet set, int slots) : set_(set), scratch_(static_cast<size_t>(slots)) {}

bool GemmTiles::Allocate() {
  for (Scratch& scratch : scratch_) {
    scratch = AllocateScratch(static_cast<uint64_t>(kPanelFloats + kBlockFloats + kSumFloats) * sizeof(float));
    if (scratch == nullptr) return false;
  }
  return true;
}

void GemmTiles::Multiply(absl::Span<const WeightProducts> weights, ThreadPool* pool) {
  Plan(weights, pool == nullptr ? 1 : pool->slots());
  ForEach(pool, static_cast<int64_t>(tiles_.size()),
          [this](int64_t index, int slot) { Compute(tiles_[static_cast<size_t>(index)], slot); });
}

// Cuts rows so that there are enough tiles for all slots: how many rows share a panel changes no bits.
void GemmTiles::Plan(absl::Span<const WeightProducts> weights, int slots) {
  blocks_.clear();
  tiles_.clear();
  int64_t block_panels = 0;
  for (const WeightProducts& weight : weights) {
    int64_t blocks = 0;
    for (const RowProduct& product : weight.products) blocks += CeilDiv(product.d.rows, kBlockRows);
    block_panels += blocks * CeilDiv(weight.b.values.rows, kPanelRows);
  }
  const int64_t blocks_per_tile = std::max<int64_t>(1, block_panels / (slots * kTilesPerSlot));
  const int64_t tile_rows = std::min(kTileRows, blocks_per_tile * kBlockRows);
  for (const WeightProducts& weight : weights) {
    const size_t first_block = blocks_.size();
    for (const RowProduct& product : weight.products) {
      for (int64_t row = 0; row < product.d.rows; row += kBlockRows) {
        blocks_.push_back({&product, row, std::min(row + kBlockRows, product.d.rows)});
      }
    }
    AddTiles(weight, first_block, tile_rows);
  }
}

void GemmTiles::AddTiles(const WeightProducts& weight, size_t first_block, int64_t tile_rows) {
  for (size_t first = first_block; first < blocks_.size();) {
    size_t last = first;
    int64_t rows = 0;
    while (last < blocks_.size() && rows + blocks_[last].end - blocks_[last].begin <= tile_rows) {
      rows += blocks_[last].end - blocks_[last].begin;
      ++last;
    }
    for (int64_t panel = 0; panel < weight.b.values.rows; panel += kPanelRows) {
      tiles_.push_back({&weight, panel, first, last});
    }
    first = last;
  }
}

void GemmTiles::Compute(const Tile& tile, int slot) {
  auto* panel = reinterpret_cast<float*>(scratch_[static_cast<size_t>(slot)].get());
  float* a = panel + kPanelFloats;
  float* const all_sums = a + kBlockFloats;
  const ScaledView& b = tile.weight->b;
  const int64_t columns = std::min(kPanelRows, b.values.rows - tile.panel);
  for (int64_t k = 0; k < b.values.columns; k += kDepth) {
    const int64_t depth = std::min(kDepth, b.values.columns - k);
    LoadPanel(b, tile.panel, columns, k, depth, panel);
    float* sums = all_sums;
    for (size_t i = tile.first; i < tile.last; ++i) {
      const RowBlock& block = blocks_[i];
      const int64_t rows = block.end - block.begin;
      LoadPanel(block.product->a, block.begin, rows, k, depth, a);
      gemmd::Multiply({a, panel, sums, rows, columns, depth, k == 0});
      sums += rows * columns;
    }
  }
  float* sums = all_sums;
  for (size_t i = tile.first; i < tile.last; ++i) {
    const int64_t count = (blocks_[i].end - blocks_[i].begin) * columns;
    if (b.values.columns == 0) std::memset(sums, 0, static_cast<size_t>(count) * sizeof(float));
    Store(blocks_[i], tile.panel, columns, sums);
    sums += count;
  }
}

// Rows [row, row + rows) x [k, k + depth) of a matrix as floats [rows, depth].
void GemmTiles::LoadPanel(const ScaledView& matrix, int64_t row, int64_t rows, int64_t k, int64_t depth,
                          float* panel) const {
  for (int64_t i = 0; i < rows; ++i) {
    const std::byte* in = matrix.values.At(row + i, k);
    float* out = panel + i * depth;
    if (matrix.values.dtype == DType::kBf16) {
      WidenBf16(set_, reinterpret_cast<const uint16_t*>(in), depth, out);
      continue;
    }
    for (int64_t block = 0; block < depth; block += kScaleBlock) {
      DequantizeE4m3(set_, reinterpret_cast<const uint8_t*>(in) + block, std::min(kScaleBlock, depth - block),
                     matrix.ScaleOf(row + i, (k + block) / kScaleBlock), out + block);
    }
  }
}

// Sums [rows of the block, columns] to columns [column, column + columns) of D.
void GemmTiles::Store(const RowBlock& block, int64_t column, int64_t columns, const float* sums) const {
  const HostMatrix& d = block.product->d;
  for (int64_t row = block.begin; row < block.end; ++row, sums += columns) {
    std::byte* out = d.At(row, column);
    if (d.dtype == DType::kBf16) {
      NarrowToBf16(set_, sums, columns, reinterpret_cast<uint16_t*>(out));
    } else if (block.product->accumulate) {
      auto* values = reinterpret_cast<float*>(out);
      for (int64_t i = 0; i < columns; ++i) values[i] += sums[i];
    } else {
      std::memcpy(out, sums, static_cast<size_t>(columns) * sizeof(float));
    }
  }
}

}  // namespace gemmd
