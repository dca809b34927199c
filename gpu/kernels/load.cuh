// SPDX-License-Identifier: Apache-2.0
// The producing side of the GEMM pipeline: one thread that issues the TMA loads of A and B, and one warp that loads the
// scale factors. Both fill the same stages; a stage's full barrier completes when all of it has landed.
#pragma once

#include "gpu/kernels/kernel_args.h"
#include "gpu/kernels/pipeline.cuh"
#include "gpu/kernels/tiles.cuh"
#include "gpu/kernels/tma.cuh"

namespace gemmd {

// Arrivals that complete a full barrier: the TMA thread's (with the bytes it expects) and each lane of the scale warp.
template <GemmTraits T>
inline constexpr int kFullArrivals = T.scaled() ? 1 + kWarpThreads : 1;

// Arrivals that complete an empty barrier: each math warp of each block that the stage's data came from or goes to.
template <GemmTraits T>
inline constexpr int kEmptyArrivals = T.cluster() * T.math_warpgroups() * kWarpgroupThreads / kWarpThreads;

// Addresses in this block's shared memory.
template <GemmTraits T>
struct SharedMap {
  uint32 base;

  __device__ uint32 a(uint32 stage) const { return base + stage * T.a_stage_bytes(); }               // [block_m, 128 B]
  __device__ uint32 b(uint32 stage) const { return base + T.b_offset() + stage * T.b_stage_bytes(); } // [block_n, 128 B]
  __device__ uint32 output(uint32 buffer) const {                                                    // [one box of D]
    return base + T.output_offset() + buffer * T.output_buffer_bytes();
  }
  __device__ uint32 sfa(uint32 stage) const {                                                        // [block_m]
    return base + T.scale_offset() + stage * T.scale_stage_floats() * 4;
  }
  __device__ uint32 sfb(uint32 stage) const { return sfa(stage) + T.sfa_floats() * 4; }              // [block_n or 2]
  __device__ __forceinline__ uint32 full(uint32 stage) const { return base + T.barrier_offset() + stage * 8; }
  __device__ __forceinline__ uint32 empty(uint32 stage) const { return full(T.stages + stage); }
};

template <GemmTraits T>
__device__ __forceinline__ void WaitEmpty(const SharedMap<T>& shared, const PipelinePosition<T.stages>& at) {
  // The first time round every stage is empty: waiting for the phase before the first one returns at once.
  WaitBarrier(shared.empty(at.stage), at.phase ^ 1);
}

// Loads one operand's tile, `kRows` rows at `row`; a shared operand by halves, each block for both.
template <int kRows, bool kShared>
__device__ __forceinline__ void LoadTile(const TensorMap* map, uint32 shared, uint32 barrier, uint64 policy, int k,
                                         int row, int batch) {
  if constexpr (kShared) {
    constexpr unsigned short kBothBlocks = 0b11;
    const int half = static_cast<int>(ClusterRank()) * (kRows / 2);
    LoadBoxMulticast(map, shared + half * kRowBytes, barrier, policy, kBothBlocks, k, row + half, batch);
  } else {
    LoadBox(map, shared, barrier, policy, k, row, batch);
  }
}

// One thread: A and B of every k-block of every tile.
template <GemmTraits T>
__device__ __forceinline__ void LoadOperands(const GemmArgs<T.max_segments, T.map_pairs>& args, SharedMap<T> shared) {
  PipelinePosition<T.stages> at;
  TileWalker<T> walker(args);
  // Few rows: weights are read once and only once, and must not push the rows out of L2.
  constexpr uint64 kPolicyB = T.swap ? kEvictFirst : kEvictNormal;
  for (Tile tile; walker.Next(&tile);) {
    const OperandMaps& maps = args.maps[T.map_pairs > 1 ? tile.segment : 0];
    for (int k_block = 0; k_block < tile.k_blocks; ++k_block, at.Advance()) {
      const uint32 full = shared.full(at.stage);
      const int k = k_block * T.block_k();
      WaitEmpty<T>(shared, at);
      ArriveExpectBytes(full, T.a_stage_bytes() + T.b_stage_bytes());
      LoadTile<T.block_m, T.cluster_n() == 2>(&maps.a, shared.a(at.stage), full, kEvictNormal, k, tile.row,
                                              T.map_pairs > 1 ? 0 : tile.batch);
      LoadTile<T.block_n, T.cluster_m() == 2>(&maps.b, shared.b(at.stage), full, kPolicyB, k, tile.column,
                                              T.map_pairs > 1 ? 0 : tile.group);
    }
  }
}

// Copies one scale factor to shared memory, and tells the stage that this thread's have arrived.
//
// compute-sanitizer's racecheck follows neither copies that arrive at an mbarrier by themselves nor the order that a wait
// at an mbarrier makes. For it alone (gpu_check --plain-scales; nothing that serves jobs defines the macro) scale factors
// travel by plain loads and stores, and the scale warp meets the math warps at a named barrier once for each k-block: the
// math warps when they find stage b full, the scale warp before it writes stage b + kScalesAhead. That orders a stage's
// writes before its reads, and its reads before the writes of the next round, and nothing more: a write is as far ahead
// of the reads as the ring allows, so that an access in the wrong stage is still a race.
#ifdef GEMMD_PLAIN_SCALES
__device__ __forceinline__ void CopyScale(uint32 shared, const float* global) { StoreShared(shared, *global); }
__device__ __forceinline__ void ArriveWithScales(uint32 barrier) { Arrive(barrier); }

inline constexpr int kScalesBarrier = 5;
// Where promotion overlaps, a stage is read until its successor has been found full too. racecheck loses an order that
// is more than a dozen barriers old.
template <GemmTraits T>
inline constexpr int kFreeStages = T.stages - 1 - (T.overlapped() ? 1 : 0);
template <GemmTraits T>
inline constexpr int kScalesAhead = kFreeStages<T> < 8 ? kFreeStages<T> : 8;

template <GemmTraits T>
__device__ __forceinline__ void MeetOverScales() {
  static_assert(kScalesAhead<T> >= 1);
  __syncwarp();
  NamedBarrier(kScalesBarrier, kWarpThreads + T.math_warpgroups() * kWarpgroupThreads);
}
#else
__device__ __forceinline__ void CopyScale(uint32 shared, const float* global) { CopyAsync4(shared, global); }
__device__ __forceinline__ void ArriveWithScales(uint32 barrier) { ArriveAfterCopies(barrier); }

template <GemmTraits T>
inline constexpr int kScalesAhead = 0;
template <GemmTraits T>
__device__ __forceinline__ void MeetOverScales() {}
#endif

// One warp: the scale factors of every k-block of every tile, from any strides. Rows and columns outside the matrices
// read the last one inside; what they scale is never stored.
template <GemmTraits T>
__device__ __forceinline__ void LoadScales(const GemmArgs<T.max_segments, T.map_pairs>& args, SharedMap<T> shared) {
  constexpr bool kBlocksOfB = T.scaling == KernelScaling::kRowBlock;
  constexpr int kCopiesA = (T.sfa_floats() + kWarpThreads - 1) / kWarpThreads;
  constexpr int kCopiesB = (T.sfb_floats() + kWarpThreads - 1) / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  PipelinePosition<T.stages> at;
  TileWalker<T> walker(args);
  int ahead = 0;  // Stages written that have not been met over.
  for (Tile tile; walker.Next(&tile);) {
    const int last_b = kBlocksOfB ? (args.n - 1) / 128 : args.n - 1;
    const int first_b = kBlocksOfB ? tile.column / 128 : tile.column;
    // Where the tile's rows are, counted from its first one inside: short enough for 32 bits (the host checks).
    const int first_a = min(tile.row, tile.row_end - 1);
    const float* sfa = args.sfa.data + tile.batch * args.sfa.batch_stride + first_a * args.sfa.row_stride +
                       tile.scale_block * args.sfa.block_stride;
    const float* sfb = args.sfb.data + tile.group * args.sfb.batch_stride + min(first_b, last_b) * args.sfb.row_stride +
                       tile.scale_block * args.sfb.block_stride;
    int offset_a[kCopiesA];
    int offset_b[kCopiesB];
#pragma unroll
    for (int i = 0; i < kCopiesA; ++i) {
      offset_a[i] = min(i * kWarpThreads + lane, tile.row_end - 1 - first_a) * static_cast<int>(args.sfa.row_stride);
    }
#pragma unroll
    for (int i = 0; i < kCopiesB; ++i) {
      const int last = max(last_b - first_b, 0);
      offset_b[i] = min(i * kWarpThreads + lane, last) * static_cast<int>(args.sfb.row_stride);
    }
    for (int k_block = 0; k_block < tile.k_blocks; ++k_block, at.Advance()) {
      WaitEmpty<T>(shared, at);
      if constexpr (kScalesAhead<T> > 0) {
        if (ahead == kScalesAhead<T>) MeetOverScales<T>();
        ahead = min(ahead + 1, kScalesAhead<T>);
      }
#pragma unroll
      for (int i = 0; i < kCopiesA; ++i) {
        const int index = i * kWarpThreads + lane;
        if (index < T.sfa_floats()) CopyScale(shared.sfa(at.stage) + index * 4, sfa + offset_a[i]);
      }
#pragma unroll
      for (int i = 0; i < kCopiesB; ++i) {
        const int index = i * kWarpThreads + lane;
        if (index < T.sfb_floats()) CopyScale(shared.sfb(at.stage) + index * 4, sfb + offset_b[i]);
      }
      ArriveWithScales(shared.full(at.stage));
      sfa += args.sfa.block_stride;
      sfb += args.sfb.block_stride;
    }
  }
  for (; ahead > 0; --ahead) MeetOverScales<T>();
}

}  // namespace gemmd
