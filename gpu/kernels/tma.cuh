// SPDX-License-Identifier: Apache-2.0
// Copies between global and shared memory: TMA (tensor boxes, moved by one thread and the copy engine) and the small
// asynchronous copies that load scale factors. One PTX instruction per function. Coordinates go innermost first.
#pragma once

#include "gpu/kernels/kernel_args.h"
#include "gpu/kernels/pipeline.cuh"

namespace gemmd {

// L2 eviction priorities as the copy engine takes them (the values that `createpolicy` gives).
inline constexpr uint64 kEvictNormal = 0x1000000000000000;
inline constexpr uint64 kEvictFirst = 0x12F0000000000000;
inline constexpr uint64 kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void PrefetchMap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Global box to shared memory; its bytes count towards `barrier`. Elements outside the tensor arrive as zeros.
__device__ __forceinline__ void LoadBox(const TensorMap* map, uint32 shared, uint32 barrier, uint64 policy, int x,
                                        int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}

// The same into every block of the cluster whose bit is set in `blocks`: same shared offset, same barrier offset.
__device__ __forceinline__ void LoadBoxMulticast(const TensorMap* map, uint32 shared, uint32 barrier, uint64 policy,
                                                 unsigned short blocks, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(blocks), "l"(policy)
      : "memory");
}

// Shared box to global; elements outside the tensor are not written. Belongs to the thread's current store group.
__device__ __forceinline__ void StoreBox(const TensorMap* map, uint32 shared, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// The same, adding to what is there (the tensor map says FP32). One addend per element, so the result is deterministic.
__device__ __forceinline__ void AddBox(const TensorMap* map, uint32 shared, int x, int y, int z) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(shared), "r"(x), "r"(y), "r"(z)
      : "memory");
}

__device__ __forceinline__ void CommitStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the latest kPending store groups of this thread have read their shared memory.
template <int kPending>
__device__ __forceinline__ void WaitStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void WaitStoresDone() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Ordinary writes to shared memory before it become visible to the copy engine and the tensor cores after it.
__device__ __forceinline__ void FenceForAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four bytes from global to shared memory without passing through a register.
__device__ __forceinline__ void CopyAsync4(uint32 shared, const float* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

// Four 8x8 matrices of 16-bit elements from fragments (register i: matrix i) to rows whose addresses lanes 8i..8i+7
// give.
__device__ __forceinline__ void StoreMatrices(uint32 shared, uint32 m0, uint32 m1, uint32 m2, uint32 m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

__device__ __forceinline__ void StoreMatricesTransposed(uint32 shared, uint32 m0, uint32 m1, uint32 m2, uint32 m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(m0), "r"(m1),
               "r"(m2), "r"(m3)
               : "memory");
}

// Two of them, from lanes 0..15's addresses.
__device__ __forceinline__ void StoreTwoMatricesTransposed(uint32 shared, uint32 m0, uint32 m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared), "r"(m0), "r"(m1)
               : "memory");
}

__device__ __forceinline__ void StoreShared(uint32 shared, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared), "f"(value) : "memory");
}

__device__ __forceinline__ void StoreShared2(uint32 shared, float low, float high) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(low), "f"(high) : "memory");
}

__device__ __forceinline__ float LoadShared(uint32 shared) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(shared));
  return value;
}

__device__ __forceinline__ float2 LoadShared2(uint32 shared) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(shared));
  return value;
}

__device__ __forceinline__ uint4 LoadShared16(uint32 shared) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(shared)
               : "memory");
  return value;
}

// Two floats as bfloat16, `low` in the low half; nearest even.
__device__ __forceinline__ uint32 PackBf16(float low, float high) {
  uint32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

}  // namespace gemmd
