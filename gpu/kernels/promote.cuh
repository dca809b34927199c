// SPDX-License-Identifier: Apache-2.0
// Promotion: adds the tensor cores' sums of one k-block (128 of K), scaled, to FP32 sums. The FP8 tensor cores keep
// about 14 bits while they add, so only 128 products are added there; and the scale factors change every 128 of K
// anyway.
#pragma once

#include "gpu/kernels/kernel_args.h"
#include "gpu/kernels/load.cuh"
#include "gpu/kernels/pipeline.cuh"
#include "gpu/kernels/tma.cuh"

namespace gemmd {

// Where a math thread's sums lie in its slab (see wgmma.cuh): rows `row` and `row + 8`, columns from `column`, in
// octets.
struct FragmentPlace {
  int row;
  int column;
};

__device__ __forceinline__ FragmentPlace PlaceOfThread() {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupThreads;
  return {thread / kWarpThreads * 16 + thread % kWarpThreads / 4, thread % 4 * 2};
}

// The factors of one stage for one slab that do not depend on the column: of row and row + 8, each times the scale of
// the first and of the second 128-block of columns.
struct RowFactors {
  float first[2];
  float second[2];
};

// `slab_row`: the slab's first row in the tile.
template <GemmTraits T>
__device__ __forceinline__ RowFactors LoadRowFactors(SharedMap<T> shared, uint32 stage, int slab_row,
                                                     FragmentPlace place) {
  RowFactors factors;
  if constexpr (T.swap && T.scaling == KernelScaling::kRowBlock) {
    // Rows are B's: the slab lies in one 128-block.
    const float scale = LoadShared(shared.sfb(stage) + slab_row / 128 * 4);
    factors = {{scale, scale}, {}};
  } else {
    const uint32 rows = (T.swap ? shared.sfb(stage) : shared.sfa(stage)) + (slab_row + place.row) * 4;
    factors = {{LoadShared(rows), LoadShared(rows + 8 * 4)}, {}};
    if constexpr (!T.swap && T.scaling == KernelScaling::kRowBlock) {
      const float2 columns = LoadShared2(shared.sfb(stage));
      factors.second[0] = factors.first[0] * columns.y;
      factors.second[1] = factors.first[1] * columns.y;
      factors.first[0] *= columns.x;
      factors.first[1] *= columns.x;
    }
  }
  return factors;
}

// total += factor * sums. `first_octets`: how many octets of columns lie in the first 128-block of B (kRowBlock); it is
// kFirstOctets unless that is 0.
template <GemmTraits T, int kFirstOctets, int kCount>
__device__ __forceinline__ void Promote(float (&total)[kCount], const float (&sums)[kCount], const RowFactors& factors,
                                        SharedMap<T> shared, uint32 stage, FragmentPlace place, int first_octets) {
  constexpr bool kFactorPerColumn = T.swap || T.scaling == KernelScaling::kRowRow;
  constexpr bool kOneBlock = 128 % T.block_n == 0;  // The tile never crosses a 128-block of columns.
  const uint32 columns = (T.swap ? shared.sfa(stage) : shared.sfb(stage)) + place.column * 4;
#pragma unroll
  for (int octet = 0; octet < kCount / 4; ++octet) {
    float low[2];   // Factors of row, for the two columns.
    float high[2];  // Of row + 8.
    if constexpr (kFactorPerColumn) {
      const float2 scale = LoadShared2(columns + octet * 8 * 4);
      low[0] = factors.first[0] * scale.x;
      low[1] = factors.first[0] * scale.y;
      high[0] = factors.first[1] * scale.x;
      high[1] = factors.first[1] * scale.y;
    } else {
      const bool first = kOneBlock || octet < (kFirstOctets > 0 ? kFirstOctets : first_octets);
      low[0] = low[1] = first ? factors.first[0] : factors.second[0];
      high[0] = high[1] = first ? factors.first[1] : factors.second[1];
    }
    total[4 * octet + 0] = __fmaf_rn(low[0], sums[4 * octet + 0], total[4 * octet + 0]);
    total[4 * octet + 1] = __fmaf_rn(low[1], sums[4 * octet + 1], total[4 * octet + 1]);
    total[4 * octet + 2] = __fmaf_rn(high[0], sums[4 * octet + 2], total[4 * octet + 2]);
    total[4 * octet + 3] = __fmaf_rn(high[1], sums[4 * octet + 3], total[4 * octet + 3]);
  }
}

}  // namespace gemmd
