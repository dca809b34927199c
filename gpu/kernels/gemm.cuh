// SPDX-License-Identifier: Apache-2.0
// The GEMM kernel: D = A * B^T for FP8 operands with block scales, and for BF16, dense and grouped.
//
// One persistent thread block per SM. Its warpgroups have roles: one or two do math (tensor cores, promotion, store),
// the last one loads: its warp 0 issues TMA, its warp 1 the scale factors. Between them lies a ring of stages in shared
// memory, each with a full barrier (the data has landed) and an empty one (all math warps have read it).
//
//   load.cuh: producers    promote.cuh: scaling    store.cuh: epilogue    tiles.cuh: tile order    wgmma.cuh, tma.cuh,
//   pipeline.cuh: the instructions
#pragma once

#include "gpu/kernels/kernel_args.h"
#include "gpu/kernels/load.cuh"
#include "gpu/kernels/pipeline.cuh"
#include "gpu/kernels/promote.cuh"
#include "gpu/kernels/store.cuh"
#include "gpu/kernels/tiles.cuh"
#include "gpu/kernels/tma.cuh"
#include "gpu/kernels/wgmma.cuh"

namespace gemmd {

// 65536 registers for 384 threads: 168 each at launch; two math warpgroups need more, copies need few. Those with many
// rows of scale factors to address, or segments to walk besides, need a few more.
template <GemmTraits T>
inline constexpr bool kManyAddresses = T.scaling == KernelScaling::kRowRow || (T.block_m == 256 && T.max_segments > 1);
template <GemmTraits T>
inline constexpr int kMathRegisters = kManyAddresses<T> ? 224 : 232;
template <GemmTraits T>
inline constexpr int kLoadRegisters = kManyAddresses<T> ? 56 : 40;

template <GemmTraits T>
class Consumer {
 public:
  using Args = GemmArgs<T.max_segments, T.map_pairs>;
  static constexpr int kSums = T.column_side() / 2;  // Registers of one slab: 64 x column_side over 128 threads.

  __device__ __forceinline__ Consumer(const Args& args, SharedMap<T> shared, int warpgroup)
      : args_(args),
        shared_(shared),
        warpgroup_(warpgroup),
        place_(PlaceOfThread()),
        a_(TileAddress(shared.a(0) + (T.swap ? 0 : SlabRow(0) * kRowBytes))),
        b_(TileAddress(shared.b(0) + (T.swap ? SlabRow(0) * kRowBytes : 0))) {}

  __device__ __forceinline__ void Run() {
    TileWalker<T> walker(args_);
    TileStore<T> store(args_, shared_, warpgroup_);
    if (warpgroup_ == 1) PassTurn();  // Warpgroup 0 begins.
    for (Tile tile; walker.Next(&tile);) {
      float total[T.slabs()][kSums];
#pragma unroll
      for (int slab = 0; slab < T.slabs(); ++slab) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) total[slab][i] = 0;
      }
      if constexpr (!T.scaled()) {
        MultiplyPlain(tile.k_blocks, total);
      } else {
        // Octets of the tile's columns before the next 128-block of B begins.
        const int first_octets = (128 - tile.column % 128) / 8;
        if constexpr (kScaleSteps == 4) {
          if (first_octets == 16) Multiply<16>(first_octets, tile.k_blocks, total);
          if (first_octets == 12) Multiply<12>(first_octets, tile.k_blocks, total);
          if (first_octets == 8) Multiply<8>(first_octets, tile.k_blocks, total);
          if (first_octets == 4) Multiply<4>(first_octets, tile.k_blocks, total);
        } else if constexpr (kScaleSteps == 2) {
          if (first_octets == 16) Multiply<16>(first_octets, tile.k_blocks, total);
          if (first_octets == 8) Multiply<8>(first_octets, tile.k_blocks, total);
        } else {
          Multiply<0>(first_octets, tile.k_blocks, total);
        }
      }
#pragma unroll
      for (int slab = 0; slab < T.slabs(); ++slab) store.StoreSlab(tile, SlabRow(slab), total[slab]);
    }
    if (warpgroup_ == 0) WaitTurn();  // Takes the turn that nobody used.
    store.Finish();
  }

 private:
  __device__ __forceinline__ int SlabRow(int slab) const {
    return (slab * T.math_warpgroups() + warpgroup_) * kSlabRows;
  }

  // kFirstOctets: first_octets where the loop is compiled for one value of it, else 0.
  template <int kFirstOctets>
  __device__ __forceinline__ void Multiply(int first_octets, int k_blocks, float (&total)[T.slabs()][kSums]) {
    first_octets_ = kFirstOctets > 0 ? kFirstOctets : first_octets;
    if constexpr (T.overlapped()) {
      MultiplyOverlapped<kFirstOctets>(k_blocks, total[0]);
    } else {
      MultiplySerial<kFirstOctets>(k_blocks, total);
    }
  }

  // Issues a slab's products over one stage (128 bytes of K): 4 instructions of 32 bytes each, in one group or, with
  // `kHalves`, in two.
  template <bool kHalves = false>
  __device__ __forceinline__ void Issue(uint32 stage, int slab, float (&sums)[kSums], bool accumulate) const {
    constexpr uint32 kSlabStep = T.math_warpgroups() * kSlabRows * kRowBytes / kTileUnit;
    constexpr uint32 kStep = 32 / kTileUnit;
    const uint32 a = a_ + stage * (T.a_stage_bytes() / kTileUnit);
    const uint32 b = b_ + stage * (T.b_stage_bytes() / kTileUnit);
    const uint32 x = (T.swap ? b : a) + slab * kSlabStep;  // [64, 128 B]
    const uint32 y = T.swap ? a : b;                       // [column_side, 128 B]
    PinRegisters(sums);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kRowBytes / 32; ++step) {
      const int add = accumulate || step > 0;
      if constexpr (T.scaled()) {
        Wgmma<T.column_side()>::E4m3(sums, TileDescriptor(x + step * kStep), TileDescriptor(y + step * kStep), add);
      } else {
        Wgmma<T.column_side()>::Bf16(sums, TileDescriptor(x + step * kStep), TileDescriptor(y + step * kStep), add);
      }
      if (kHalves && step == 1) WgmmaCommit();
    }
    WgmmaCommit();
    PinRegisters(sums);
  }

  // This warp has read the stage. With a cluster, both blocks' producers write into it: tell both.
  __device__ __forceinline__ void Release(uint32 stage) const {
    const uint32 lane = threadIdx.x % kWarpThreads;
    if constexpr (T.cluster() > 1) {
      if (lane < T.cluster()) ArriveAtPeer(shared_.empty(stage), lane);
    } else {
      if (lane == 0) Arrive(shared_.empty(stage));
    }
  }

  __device__ __forceinline__ bool IsFull() const { return TryWait(shared_.full(at_.stage), at_.phase); }

  __device__ __forceinline__ void WaitFull(bool known = false) const {
    if (!known) WaitBarrier(shared_.full(at_.stage), at_.phase);
    if constexpr (T.scaled()) MeetOverScales<T>();
  }

  // BF16: the tensor cores keep FP32 sums themselves. One k-block stays in flight while the next is issued.
  __device__ __forceinline__ void MultiplyPlain(int k_blocks, float (&total)[T.slabs()][kSums]) {
    uint32 previous = 0;
    for (int k_block = 0; k_block < k_blocks; ++k_block, at_.Advance()) {
      WaitFull();
#pragma unroll
      for (int slab = 0; slab < T.slabs(); ++slab) Issue(at_.stage, slab, total[slab], true);
      WgmmaWait<T.slabs()>();
      if (k_block > 0) Release(previous);
      previous = at_.stage;
    }
    WgmmaWait<0>();
#pragma unroll
    for (int slab = 0; slab < T.slabs(); ++slab) PinRegisters(total[slab]);
    if (k_blocks > 0) Release(previous);
  }

  // Turns of the two math warpgroups. The tensor cores serve both at once if both have products waiting; then both
  // finish together, both promote together, and the tensor cores idle meanwhile. So a warpgroup starts its products
  // only when the other one's are half done, and promotes while the other one's run.
  __device__ __forceinline__ void WaitTurn() const {
    if constexpr (kTakesTurns) NamedBarrier(kFirstTurnBarrier + warpgroup_, 2 * kWarpgroupThreads);
  }
  __device__ __forceinline__ void PassTurn() const {
    if constexpr (kTakesTurns) ArriveNamedBarrier(kFirstTurnBarrier + 1 - warpgroup_, 2 * kWarpgroupThreads);
  }

  // One k-block at a time: multiply, wait, promote. The other math warpgroup multiplies meanwhile.
  template <int kFirstOctets>
  __device__ __forceinline__ void MultiplySerial(int k_blocks, float (&total)[T.slabs()][kSums]) {
    float sums[kSums];
    bool full = false;
#pragma unroll kUnroll
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      WaitFull(full);
#pragma unroll
      for (int slab = 0; slab < T.slabs(); ++slab) {
        const RowFactors factors = LoadRowFactors<T>(shared_, at_.stage, SlabRow(slab), place_);
        WaitTurn();
        Issue<kTakesTurns>(at_.stage, slab, sums, false);
        if constexpr (kTakesTurns) WgmmaWait<1>();
        PassTurn();
        WgmmaWait<0>();
        PinRegisters(sums);
        // Where promotion needs no more of the stage, the producer may have it back before.
        const bool last = slab == T.slabs() - 1;
        const uint32 stage = at_.stage;
        if (last && !kStageNeededToPromote) Release(stage);
        if (last) at_.Advance();
        if (last && kLooksAhead) full = k_block + 1 < k_blocks && IsFull();
        Promote<T, kFirstOctets>(total[slab], sums, factors, shared_, stage, place_, first_octets_);
        if (last && kStageNeededToPromote) Release(stage);
      }
    }
  }

  // Two k-blocks in turn: one multiplies while the other is promoted.
  template <int kFirstOctets>
  __device__ __forceinline__ void MultiplyOverlapped(int k_blocks, float (&total)[kSums]) {
    if (k_blocks == 0) return;
    float even[kSums];
    float odd[kSums];
    WaitFull();
    Issue(at_.stage, 0, even, false);
    int k_block = 0;
    for (; k_block + 2 < k_blocks; k_block += 2) {
      IssueNextAndPromote<kFirstOctets>(odd, even, total);
      IssueNextAndPromote<kFirstOctets>(even, odd, total);
    }
    if (k_block + 2 == k_blocks) {
      IssueNextAndPromote<kFirstOctets>(odd, even, total);
      PromoteLast<kFirstOctets>(odd, total);
    } else {
      PromoteLast<kFirstOctets>(even, total);
    }
  }

  // `running` holds the k-block at at_; issues the one after it into `next`.
  template <int kFirstOctets>
  __device__ __forceinline__ void IssueNextAndPromote(float (&next)[kSums], float (&running)[kSums],
                                                      float (&total)[kSums]) {
    const uint32 stage = at_.stage;
    const RowFactors factors = LoadRowFactors<T>(shared_, stage, SlabRow(0), place_);
    at_.Advance();
    WaitFull();
    Issue(at_.stage, 0, next, false);
    WgmmaWait<1>();
    PinRegisters(running);
    if constexpr (!kStageNeededToPromote) Release(stage);
    Promote<T, kFirstOctets>(total, running, factors, shared_, stage, place_, first_octets_);
    if constexpr (kStageNeededToPromote) Release(stage);
  }

  template <int kFirstOctets>
  __device__ __forceinline__ void PromoteLast(float (&running)[kSums], float (&total)[kSums]) {
    const RowFactors factors = LoadRowFactors<T>(shared_, at_.stage, SlabRow(0), place_);
    WgmmaWait<0>();
    PinRegisters(running);
    Promote<T, kFirstOctets>(total, running, factors, shared_, at_.stage, place_, first_octets_);
    Release(at_.stage);
    at_.Advance();
  }

  // With two slabs each, the warpgroups fall out of step by themselves.
  static constexpr bool kTakesTurns = T.scaled() && !T.overlapped() && T.math_warpgroups() == 2 && T.slabs() == 1;
  // The look at the next stage's barrier takes a while and is made before promotion: by the program, or by the compiler
  // where it sees several k-blocks at once. Which is faster was measured.
  static constexpr bool kLooksAhead = T.slabs() > 1;
  static constexpr int kUnroll = T.slabs() > 1 ? 1 : T.block_n == 192 ? 4 : 2;
  static constexpr int kFirstTurnBarrier = 3;  // After those of TileStore, before kScalesBarrier.
  // How many places a 128-block's edge can have in a tile, where the loop is compiled for each of them: selecting the
  // scale of each octet at run time costs half as much again as promotion itself. Other widths have too many places.
  static constexpr int kScaleSteps = T.swap || T.scaling != KernelScaling::kRowBlock ? 1
                                     : T.block_n == 192                              ? 2
                                     : T.block_n % 32 == 0 && 128 % T.block_n != 0   ? 4
                                                                                     : 1;
  static constexpr bool kStageNeededToPromote = T.swap || T.scaling == KernelScaling::kRowRow;  // Column factors.

  const Args& args_;
  SharedMap<T> shared_;
  int warpgroup_;
  FragmentPlace place_;
  uint32 a_;  // Of this warpgroup's first slab, stage 0.
  uint32 b_;
  PipelinePosition<T.stages> at_;
  int first_octets_ = 0;
};

// Barriers are ready, and every block of the cluster knows it, before anybody loads.
template <GemmTraits T>
__device__ __forceinline__ void StartPipeline(SharedMap<T> shared) {
  if (threadIdx.x == 0) {
    for (uint32 stage = 0; stage < T.stages; ++stage) {
      InitBarrier(shared.full(stage), kFullArrivals<T>);
      InitBarrier(shared.empty(stage), kEmptyArrivals<T>);
    }
    FenceBarrierInit();
  }
  if constexpr (T.cluster() > 1) {
    ClusterArrive();
    ClusterWait();
  } else {
    __syncthreads();
  }
}

template <GemmTraits T>
__global__ void __launch_bounds__(T.threads(), 1)
    Gemm(const __grid_constant__ GemmArgs<T.max_segments, T.map_pairs> args) {
  static_assert(T.legal());
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const SharedMap<T> shared{SharedAddress(shared_memory)};
  // Uniform over the warp, and told so to the compiler.
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / kWarpThreads, 0);
  const int warpgroup = warp / (kWarpgroupThreads / kWarpThreads);
  constexpr int kTmaWarp = T.math_warpgroups() * kWarpgroupThreads / kWarpThreads;
  constexpr int kScaleWarp = kTmaWarp + 1;

  if (warp == kTmaWarp && threadIdx.x % kWarpThreads == 0) {
    PrefetchMap(&args.maps[0].a);
    PrefetchMap(&args.maps[0].b);
    PrefetchMap(&args.d_map);
  }
  StartPipeline<T>(shared);
  LaunchDependents();
  WaitForPrevious();

  if (warpgroup == T.math_warpgroups()) {
    if constexpr (T.math_warpgroups() == 2) GiveRegisters<kLoadRegisters<T>>();
    if (warp == kTmaWarp && threadIdx.x % kWarpThreads == 0) LoadOperands<T>(args, shared);
    if constexpr (T.scaled()) {
      if (warp == kScaleWarp) LoadScales<T>(args, shared);
    }
  } else {
    if constexpr (T.math_warpgroups() == 2) TakeRegisters<kMathRegisters<T>>();
    Consumer<T>(args, shared, warpgroup).Run();
  }
  if constexpr (T.cluster() > 1) {
    // A block's shared memory must outlive its peer's last arrival in it.
    __syncwarp();
    ClusterArrive();
    ClusterWait();
  }
}

}  // namespace gemmd
