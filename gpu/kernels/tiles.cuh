// SPDX-License-Identifier: Apache-2.0
// Which tile of D a thread block computes next. Clusters walk all tiles of all segments with a stride of the grid, each
// role of a block (loads, scales, math) with a walker of its own: the order is arithmetic, nobody has to be told.
//
// Within a segment tiles go in bands of `band` tiles along M; a band is walked column by column. So the tiles that run
// at one time form a rectangle of about band x (SMs / band), and what they load is shared in L2.
//
// Segments come in the arguments. For masked products whose rows only the GPU knows they are made from group_rows.
#pragma once

#include "gpu/kernels/kernel_args.h"
#include "gpu/kernels/pipeline.cuh"

namespace gemmd {

struct Tile {
  int segment;  // Its number.
  int batch;    // Outer coordinate in A and D.
  int group;    // Outer coordinate in B.
  int row;      // First row of A and D.
  int row_end;  // Rows from here on belong to another segment.
  int column;   // First row of B, column of D.
  int k_blocks;
  int scale_block;  // Of the tile's first k-block.
};

template <GemmTraits T>
class TileWalker {
 public:
  using Args = GemmArgs<T.max_segments, T.map_pairs>;

  __device__ __forceinline__ explicit TileWalker(const Args& args)
      : args_(args),
        next_(static_cast<int>(blockIdx.x) / T.cluster()),
        columns_(CeilDiv(args.n, T.block_n * T.cluster_n())) {
    segment_tiles_ = TilesOf(0);
  }

  // Moves to this cluster's next tile; false after the last one. A block of a cluster whose tile lies outside D (odd
  // counts) computes all the same: loads outside a tensor give zeros, stores outside go nowhere.
  __device__ __forceinline__ bool Next(Tile* tile) {
    if (next_ >= args_.tiles) return false;
    if constexpr (T.max_segments > 1) {
      while (next_ - first_ >= segment_tiles_) {
        first_ += segment_tiles_;
        if (++segment_ >= args_.segment_count) return false;  // `tiles` was more than there are.
        segment_tiles_ = TilesOf(segment_);
      }
    }
    Place(next_ - first_, tile);
    next_ += static_cast<int>(gridDim.x) / T.cluster();
    return true;
  }

 private:
  static __device__ __forceinline__ int CeilDiv(int a, int b) { return (a + b - 1) / b; }

  __device__ __forceinline__ Segment SegmentAt(int segment) const {
    if constexpr (T.max_segments > 1 && T.map_pairs == 1) {
      if (args_.group_rows != nullptr) {
        return {segment, segment, 0, args_.group_rows[segment], args_.segments[0].k, 0};
      }
    }
    return args_.segments[segment];
  }

  static __device__ __forceinline__ int RowsOf(const Segment& s) {
    return CeilDiv(s.row_end - s.row_begin, T.block_m * T.cluster_m());
  }
  __device__ __forceinline__ int TilesOf(int segment) const { return RowsOf(SegmentAt(segment)) * columns_; }

  __device__ __forceinline__ void Place(int index, Tile* tile) const {
    const Segment s = SegmentAt(segment_);
    const int rows = RowsOf(s);
    const int band = index / (args_.band * columns_);
    const int in_band = index - band * args_.band * columns_;
    const int band_rows = min(args_.band, rows - band * args_.band);
    const int column = in_band / band_rows;
    const int row = band * args_.band + in_band - column * band_rows;
    const int rank = T.cluster() == 1 ? 0 : static_cast<int>(ClusterRank());
    const int m_block = T.cluster_m() == 2 ? 2 * row + rank : row;
    const int n_block = T.cluster_n() == 2 ? 2 * column + rank : column;
    tile->segment = segment_;
    tile->batch = s.batch;
    tile->group = s.group;
    tile->row = s.row_begin + m_block * T.block_m;
    tile->row_end = s.row_end;
    tile->column = n_block * T.block_n;
    tile->k_blocks = CeilDiv(s.k, T.block_k());
    tile->scale_block = s.scale_block;
  }

  const Args& args_;
  int next_;
  int columns_;
  int segment_ = 0;
  int first_ = 0;  // Number of the current segment's first tile.
  int segment_tiles_ = 0;
};

}  // namespace gemmd
