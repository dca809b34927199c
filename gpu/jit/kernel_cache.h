// SPDX-License-Identifier: Apache-2.0
// Compiled kernels by instantiation: in memory, else on disk, else compiled. However many ask, a kernel is compiled
// once at a time; compiles that nobody waits for run in a bounded number of background threads. Thread-safe.
#ifndef GEMMD_GPU_JIT_KERNEL_CACHE_H_
#define GEMMD_GPU_JIT_KERNEL_CACHE_H_

#include "gpu/jit/kernel_key.h"
#include "gpu/jit/kernel_store.h"
#include "gpu/jit/nvrtc_compiler.h"
#include "proto/worker_counters.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {

class KernelCache {
 public:
  using CompileFunction = std::function<absl::StatusOr<CompiledKernel>(const KernelKey&)>;
  using KernelPointer = std::shared_ptr<const CompiledKernel>;

  struct Options {
    int threads = 2;           // Background compiles at a time: a compile takes one core for half a second to two.
    size_t queue_limit = 256;  // Compiles that wait; more requests for background compiles are dropped.
    // Where compiles, loads and kernels are counted, if anywhere. Outlives the cache.
    const WorkerCounters* counters = nullptr;
  };

  struct Counts {
    uint64_t memory_hits = 0;
    uint64_t disk_hits = 0;
    uint64_t compiles = 0;
    uint64_t failures = 0;
  };

  KernelCache(CompileFunction compile, std::optional<KernelStore> store, Options options);
  // Waits for the compile that each thread is in; drops those that wait.
  ~KernelCache();
  KernelCache(const KernelCache&) = delete;
  KernelCache& operator=(const KernelCache&) = delete;

  // The kernel; waits while it is loaded or compiled. A failed compile is remembered: it would fail again.
  absl::StatusOr<KernelPointer> Get(const KernelKey& key);

  // The kernel if it is in memory, else null; in that case it is made ready in the background.
  KernelPointer Find(const KernelKey& key);

  Counts counts() const;

 private:
  struct Entry {
    bool queued = false;  // Waits for, or is in the hands of, a thread.
    bool done = false;
    absl::StatusOr<KernelPointer> kernel = KernelPointer();
  };

  Entry& EntryOf(const KernelKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<KernelPointer> Make(const KernelKey& key);
  absl::StatusOr<CompiledKernel> Compile(const KernelKey& key);
  void PublishQueue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MakeAndPublish(const KernelKey& key);
  void RunThread();

  const CompileFunction compile_;
  const std::optional<KernelStore> store_;
  const Options options_;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::unique_ptr<Entry>> entries_ ABSL_GUARDED_BY(mutex_);  // By digest.
  std::deque<KernelKey> queue_ ABSL_GUARDED_BY(mutex_);
  Counts counts_ ABSL_GUARDED_BY(mutex_);
  uint64_t kernels_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t kernel_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_JIT_KERNEL_CACHE_H_
