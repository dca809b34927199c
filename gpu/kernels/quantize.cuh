// SPDX-License-Identifier: Apache-2.0
// Quantization: Q = x / sf in e4m3 and sf = amax / 448 over blocks of 1x128 or 128x128. Bound by memory: each element
// is read once and written once; a warp holds one 1x128 block, 4 elements per lane.
#pragma once

#include "gpu/kernels/kernel_args.h"

namespace gemmd {

inline constexpr float kLargestE4m3 = 448.0f;
inline constexpr int kQuantizeWarps = 8;
inline constexpr int kQuantizeBlock = 128;  // Of K; of M too for 128x128.

// Four elements of a row from column `k`, zeros beyond the row's end.
template <typename X>
__device__ __forceinline__ float4 LoadFour(const void* x, long long index, long long left);

template <>
__device__ __forceinline__ float4 LoadFour<float>(const void* x, long long index, long long left) {
  const float* at = static_cast<const float*>(x) + index;
  if (left >= 4) return *reinterpret_cast<const float4*>(at);
  return {left > 0 ? at[0] : 0, left > 1 ? at[1] : 0, left > 2 ? at[2] : 0, 0};
}

struct Bf16;  // Tag.

__device__ __forceinline__ float Bf16Bits(unsigned int bits) { return __uint_as_float(bits << 16); }

template <>
__device__ __forceinline__ float4 LoadFour<Bf16>(const void* x, long long index, long long left) {
  const unsigned short* at = static_cast<const unsigned short*>(x) + index;
  if (left >= 4) {
    const uint2 two = *reinterpret_cast<const uint2*>(at);
    return {Bf16Bits(two.x & 0xffff), Bf16Bits(two.x >> 16), Bf16Bits(two.y & 0xffff), Bf16Bits(two.y >> 16)};
  }
  return {left > 0 ? Bf16Bits(at[0]) : 0, left > 1 ? Bf16Bits(at[1]) : 0, left > 2 ? Bf16Bits(at[2]) : 0, 0};
}

__device__ __forceinline__ float LargestMagnitude(float4 x) {
  return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
}

__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lanes));
  return value;
}

// Blocks of zeros get 1, and so do blocks so small that amax / 448 is zero.
__device__ __forceinline__ float ScaleOf(float largest) {
  const float scale = __fdiv_rn(largest, kLargestE4m3);
  return scale == 0 ? 1.0f : scale;
}

// Two floats to two e4m3, nearest even, saturating; `low` in the low byte.
__device__ __forceinline__ unsigned int PackE4m3(float low, float high) {
  unsigned short packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ void StoreFour(unsigned char* q, long long left, float4 x, float scale) {
  const unsigned int packed = PackE4m3(__fdiv_rn(x.x, scale), __fdiv_rn(x.y, scale)) |
                              PackE4m3(__fdiv_rn(x.z, scale), __fdiv_rn(x.w, scale)) << 16;
  if (left >= 4) {
    *reinterpret_cast<unsigned int*>(q) = packed;
    return;
  }
  for (int i = 0; i < left; ++i) q[i] = static_cast<unsigned char>(packed >> 8 * i);
}

// Grid: (k-blocks, rows / kQuantizeWarps); one warp per 1x128 block.
template <typename X>
__global__ void __launch_bounds__(kQuantizeWarps * 32) QuantizeRows(const __grid_constant__ QuantizeArgs args) {
  const long long row = static_cast<long long>(blockIdx.y) * kQuantizeWarps + threadIdx.x / 32;
  const long long k = static_cast<long long>(blockIdx.x) * kQuantizeBlock + threadIdx.x % 32 * 4;
  if (row >= args.m) return;
  const float4 x = LoadFour<X>(args.x, row * args.x_row_stride + k, args.k - k);
  const float scale = ScaleOf(WarpMax(LargestMagnitude(x)));
  StoreFour(args.q + row * args.q_row_stride + k, args.k - k, x, scale);
  if (threadIdx.x % 32 == 0) args.sf[row * args.sf_row_stride + blockIdx.x * args.sf_block_stride] = scale;
}

// Grid: (k-blocks, row blocks); one thread block per 128x128 block, 16 rows per warp.
template <typename X>
__global__ void __launch_bounds__(kQuantizeWarps * 32) QuantizeBlocks(const __grid_constant__ QuantizeArgs args) {
  constexpr int kRows = kQuantizeBlock / kQuantizeWarps;
  __shared__ float largest_of_warp[kQuantizeWarps];
  const int warp = threadIdx.x / 32;
  const long long first_row = static_cast<long long>(blockIdx.y) * kQuantizeBlock + warp * kRows;
  const long long k = static_cast<long long>(blockIdx.x) * kQuantizeBlock + threadIdx.x % 32 * 4;
  float4 x[kRows];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const long long row = first_row + i;
    x[i] = row < args.m ? LoadFour<X>(args.x, row * args.x_row_stride + k, args.k - k) : float4{0, 0, 0, 0};
    largest = fmaxf(largest, LargestMagnitude(x[i]));
  }
  largest = WarpMax(largest);
  if (threadIdx.x % 32 == 0) largest_of_warp[warp] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kQuantizeWarps; ++i) largest = fmaxf(largest, largest_of_warp[i]);
  const float scale = ScaleOf(largest);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const long long row = first_row + i;
    if (row < args.m) StoreFour(args.q + row * args.q_row_stride + k, args.k - k, x[i], scale);
  }
  if (threadIdx.x == 0) args.sf[blockIdx.y * args.sf_row_stride + blockIdx.x * args.sf_block_stride] = scale;
}

}  // namespace gemmd
