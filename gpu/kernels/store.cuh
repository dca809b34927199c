// SPDX-License-Identifier: Apache-2.0
// The epilogue of a tile: each math warpgroup converts its own slabs, lays them out in shared memory as boxes, and has
// TMA store them while it goes on with the next tile. Warpgroups never wait for each other here, so one computes while
// the other stores.
#pragma once

#include "gpu/kernels/kernel_args.h"
#include "gpu/kernels/load.cuh"
#include "gpu/kernels/pipeline.cuh"
#include "gpu/kernels/promote.cuh"
#include "gpu/kernels/tiles.cuh"
#include "gpu/kernels/tma.cuh"

namespace gemmd {

// TMA's swizzle: 16-byte chunks of a row are permuted by bits of the address above them, so that the rows that a warp
// writes together fall into different banks. `offset` counts from the box's start, which lies on 1024 bytes.
template <int kBoxRowBytes>
__device__ __forceinline__ uint32 Swizzle(uint32 offset) {
  return offset ^ ((offset >> 7) & (kBoxRowBytes / 16 - 1)) << 4;
}

// One math warpgroup's way out. Its staging buffers are used in turn; thread 0 issues and tracks the stores.
template <GemmTraits T>
class TileStore {
 public:
  using Args = GemmArgs<T.max_segments, T.map_pairs>;
  static constexpr int kSums = T.column_side() / 2;

  __device__ __forceinline__ TileStore(const Args& args, SharedMap<T> shared, int warpgroup)
      : args_(args),
        shared_(shared),
        warpgroup_(warpgroup),
        thread_(static_cast<int>(threadIdx.x) % kWarpgroupThreads) {}

  // Stores the sums of the slab whose first row in the tile (on WGMMA's 64-row side) is `slab_row`.
  __device__ __forceinline__ void StoreSlab(const Tile& tile, int slab_row, const float (&sums)[kSums]) {
#pragma unroll
    for (int first = 0; first < T.boxes_per_slab(); first += kBatch) {
      const int row = tile.row + (T.swap ? 0 : slab_row);
      const int column = tile.column + (T.swap ? slab_row : 0) + first * T.box_columns();
      const uint32 buffers = shared_.output(static_cast<uint32>(warpgroup_ * T.store_buffers) + next_buffer_);
      next_buffer_ = next_buffer_ + kBatch == T.store_buffers ? 0 : next_buffer_ + kBatch;
      if (thread_ == 0) WaitStoresRead<T.store_buffers / kBatch - 1>();
      Synchronize();  // The buffers are free.
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if constexpr (T.swap) {
          WriteTransposed(buffers + i * T.output_buffer_bytes(), first + i, sums);
        } else {
          WriteBox(buffers + i * T.output_buffer_bytes(), first + i, sums);
        }
      }
      FenceForAsyncProxy();
      Synchronize();  // The boxes are complete.
      const bool clipped = T.max_segments > 1 && args_.clip_rows && row + T.box_rows() > tile.row_end;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32 buffer = buffers + i * T.output_buffer_bytes();
        if (clipped) {
          CopyRows(buffer, tile, row, column + i * T.box_columns());
        } else if (thread_ == 0) {
          Issue(buffer, column + i * T.box_columns(), row, tile.batch);
        }
      }
      // One group for each batch, be it empty: that is how WaitStoresRead above counts buffers.
      if (thread_ == 0) CommitStores();
    }
  }

  // Before the block ends, its shared memory must have been read.
  __device__ __forceinline__ void Finish() const {
    if (thread_ == 0) WaitStoresDone();
  }

 private:
  // Boxes that are written and stored together, for one wait, one fence and two barriers.
  static constexpr int kBatch = T.boxes_per_batch();
  static constexpr int kRowOfBox = T.box_columns() * T.output_bytes();  // Bytes.

  __device__ __forceinline__ void Synchronize() const { NamedBarrier(1 + warpgroup_, kWarpgroupThreads); }

  __device__ __forceinline__ void Issue(uint32 buffer, int column, int row, int batch) const {
    if constexpr (T.output == KernelOutput::kF32Add) {
      AddBox(&args_.d_map, buffer, column, row, batch);
    } else {
      StoreBox(&args_.d_map, buffer, column, row, batch);
    }
  }

  __device__ __forceinline__ void WriteBox(uint32 buffer, int box, const float (&sums)[kSums]) const {
    constexpr int kOctets = T.box_columns() / 8;
    const float* box_sums = sums + box * kOctets * 4;
    if constexpr (T.output == KernelOutput::kBf16) {
      // Lanes 0-7 address the rows of matrix 0 (rows 0-7, octet 0), 8-15 of matrix 1 (rows 8-15), 16-31 of octet 1.
      const int lane = thread_ % kWarpThreads;
      const uint32 row = static_cast<uint32>(thread_ / kWarpThreads * 16 + lane % 16);
#pragma unroll
      for (int octet = 0; octet < kOctets; octet += 2) {
        const float* s = box_sums + octet * 4;
        const uint32 offset = row * kRowOfBox + static_cast<uint32>(octet + lane / 16) * 16;
        StoreMatrices(buffer + Swizzle<kRowOfBox>(offset), PackBf16(s[0], s[1]), PackBf16(s[2], s[3]),
                      PackBf16(s[4], s[5]), PackBf16(s[6], s[7]));
      }
    } else {
      const FragmentPlace place = PlaceOfThread();
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        const float* s = box_sums + octet * 4;
        const uint32 offset = static_cast<uint32>(place.row * kRowOfBox + (octet * 8 + place.column) * 4);
        StoreShared2(buffer + Swizzle<kRowOfBox>(offset), s[0], s[1]);
        StoreShared2(buffer + Swizzle<kRowOfBox>(offset + 8 * kRowOfBox), s[2], s[3]);
      }
    }
  }

  // The slab's rows are columns of D: [64, block_m] sums become box rows [block_m, 64].
  __device__ __forceinline__ void WriteTransposed(uint32 buffer, int box, const float (&sums)[kSums]) const {
    constexpr int kOctets = T.block_m / 8;
    if constexpr (T.output == KernelOutput::kBf16) {
      const int lane = thread_ % kWarpThreads;
      const uint32 column_bytes = static_cast<uint32>(thread_ / kWarpThreads * 32 + lane / 8 % 2 * 16);
#pragma unroll
      for (int octet = 0; octet + 1 < kOctets; octet += 2) {
        const float* s = sums + octet * 4;
        const uint32 row = static_cast<uint32>((octet + lane / 16) * 8 + lane % 8);
        StoreMatricesTransposed(buffer + Swizzle<kRowOfBox>(row * kRowOfBox + column_bytes), PackBf16(s[0], s[1]),
                                PackBf16(s[2], s[3]), PackBf16(s[4], s[5]), PackBf16(s[6], s[7]));
      }
      if constexpr (kOctets % 2 == 1) {
        const float* s = sums + (kOctets - 1) * 4;
        const uint32 row = static_cast<uint32>((kOctets - 1) * 8 + lane % 8);
        StoreTwoMatricesTransposed(buffer + Swizzle<kRowOfBox>(row * kRowOfBox + column_bytes), PackBf16(s[0], s[1]),
                                   PackBf16(s[2], s[3]));
      }
    } else {
      // A warp holds 16 columns of D, all of them in one box.
      const FragmentPlace place = PlaceOfThread();
      if (place.row / T.box_columns() != box) return;
      const int column = place.row % T.box_columns();
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = octet * 8 + place.column + i % 2;
          const uint32 offset = static_cast<uint32>(row * kRowOfBox + (column + i / 2 * 8) * 4);
          StoreShared(buffer + Swizzle<kRowOfBox>(offset), sums[4 * octet + i]);
        }
      }
    }
  }

  // The last rows of a segment, without those that TMA would write beyond it: 16 bytes per thread and step.
  __device__ __forceinline__ void CopyRows(uint32 buffer, const Tile& tile, int row, int column) const {
    constexpr int kChunksPerRow = kRowOfBox / 16;
    constexpr int kChunkColumns = 16 / T.output_bytes();
    const int rows = min(tile.row_end - row, T.box_rows());
    for (int chunk = thread_; chunk < rows * kChunksPerRow; chunk += kWarpgroupThreads) {
      const int r = chunk / kChunksPerRow;
      const int c = column + chunk % kChunksPerRow * kChunkColumns;
      if (c >= args_.n) continue;  // A row's last chunk is written whole, as TMA does (gemm_call.h).
      char* d = static_cast<char*>(args_.d.data) +
                (tile.batch * args_.d.batch_stride + (row + r) * args_.d.row_stride + c) * T.output_bytes();
      const uint32 offset = static_cast<uint32>(r * kRowOfBox + chunk % kChunksPerRow * 16);
      *reinterpret_cast<uint4*>(d) = LoadShared16(buffer + Swizzle<kRowOfBox>(offset));
    }
  }

  const Args& args_;
  SharedMap<T> shared_;
  int warpgroup_;
  int thread_;
  uint32 next_buffer_ = 0;
};

}  // namespace gemmd
