// SPDX-License-Identifier: Apache-2.0
// A fixed set of threads that share a loop. Used by CpuDevice for tiles: tiles are handed out one at a time, so uneven
// ones balance. One loop at a time.
#ifndef GEMMD_GPU_CPU_THREAD_POOL_H_
#define GEMMD_GPU_CPU_THREAD_POOL_H_

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace gemmd {

class ThreadPool {
 public:
  // `slot` is below slots() and differs between calls that run at the same time: an index for scratch memory.
  using Body = absl::FunctionRef<void(int64_t index, int slot)>;

  // `threads` counts the caller of ParallelFor. Requires: threads > 0.
  explicit ThreadPool(int threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  // Requires: no loop runs.
  ~ThreadPool();

  int slots() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(index, slot) once for each index in [0, count), on this thread (slot 0) and the pool's; returns when all
  // have returned. Requires: no other loop runs.
  void ParallelFor(int64_t count, Body body) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Serve(int slot) ABSL_LOCKS_EXCLUDED(mutex_);
  void TakeIndices(int64_t count, Body body, int slot);

  absl::Mutex mutex_;
  absl::CondVar wake_;
  absl::CondVar idle_;
  const Body* body_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;  // Counts loops, so that a thread serves each once.
  int busy_ ABSL_GUARDED_BY(mutex_) = 0;             // Threads that have not finished this loop.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<int64_t> next_{0};
  std::vector<std::thread> threads_;
};

// The same on this thread alone if `pool` is null.
inline void ForEach(ThreadPool* pool, int64_t count, ThreadPool::Body body) {
  if (pool != nullptr) return pool->ParallelFor(count, body);
  for (int64_t index = 0; index < count; ++index) body(index, 0);
}

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_THREAD_POOL_H_
