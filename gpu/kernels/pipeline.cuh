// SPDX-License-Identifier: Apache-2.0
// Barriers of thread block, cluster and pipeline: one PTX instruction per function. An mbarrier lives in shared memory,
// completes a phase when its pending arrivals and bytes reach zero, and is waited for by the parity of that phase.
#pragma once

namespace gemmd {

using uint32 = unsigned int;
using uint64 = unsigned long long;

// PTX takes shared memory as a 32-bit address in the shared window.
__device__ __forceinline__ uint32 SharedAddress(const void* pointer) {
  return static_cast<uint32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void InitBarrier(uint32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialized barriers visible to the other thread blocks of the cluster and to the copy engine.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void ArriveExpectBytes(uint32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void Arrive(uint32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// `barrier` is an address of this block's shared memory; the arrival goes to the same place in block `rank`. Waiting
// for it with an acquire at cluster scope would invalidate L1 each time; nothing that generic loads read depends on it.
__device__ __forceinline__ void ArriveAtPeer(uint32 barrier, uint32 rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives once this thread's earlier asynchronous copies (CopyAsync4) have landed; counts among the barrier's arrivals.
__device__ __forceinline__ void ArriveAfterCopies(uint32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ bool TryWait(uint32 barrier, uint32 parity) {
  uint32 done;
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
      "selp.u32 %0, 1, 0, complete;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void WaitBarrier(uint32 barrier, uint32 parity) {
  while (!TryWait(barrier, parity)) {
  }
}

// Barrier among `threads` threads of the block; ids 1 to 15 (0 is __syncthreads).
__device__ __forceinline__ void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives without waiting; together with the waiters' own `threads`.
__device__ __forceinline__ void ArriveNamedBarrier(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32 ClusterRank() {
  uint32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Registers move from the warpgroup that only issues copies to those that hold accumulators.
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Programmatic dependent launch: the next kernel of the stream may start filling free SMs ...
__device__ __forceinline__ void LaunchDependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ... and passes this point when the previous one has completed and its writes are visible.
__device__ __forceinline__ void WaitForPrevious() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Where a producer or a consumer stands in the ring of stages. `phase` flips each time round.
template <int kStages>
struct PipelinePosition {
  uint32 stage = 0;
  uint32 phase = 0;

  __device__ __forceinline__ void Advance() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    phase ^= stage == 0;
  }
};

}  // namespace gemmd
