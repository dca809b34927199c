// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/kernel_cache.h"

#include "proto/job_ring.h"

#include "absl/status/status.h"
#include "spdlog/spdlog.h"

#include <utility>

namespace gemmd {

KernelCache::KernelCache(CompileFunction compile, std::optional<KernelStore> store, Options options)
    : compile_(std::move(compile)), store_(std::move(store)), options_(options) {
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { RunThread(); });
}

KernelCache::~KernelCache() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

KernelCache::Entry& KernelCache::EntryOf(const KernelKey& key) {
  std::unique_ptr<Entry>& entry = entries_[key.digest().Hex()];
  if (entry == nullptr) entry = std::make_unique<Entry>();
  return *entry;
}

absl::StatusOr<KernelCache::KernelPointer> KernelCache::Get(const KernelKey& key) {
  Entry* entry = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    entry = &EntryOf(key);
    if (entry->done) {
      ++counts_.memory_hits;
      return entry->kernel;
    }
    // Whoever waits must not stand behind others' background work: take the key out of the queue and make it here.
    for (auto waiting = queue_.begin(); waiting != queue_.end(); ++waiting) {
      if (*waiting == key) {
        queue_.erase(waiting);
        PublishQueue();
        entry->queued = false;
        break;
      }
    }
    if (entry->queued) {
      mutex_.Await(absl::Condition(&entry->done));
      return entry->kernel;
    }
    entry->queued = true;
  }
  MakeAndPublish(key);
  absl::MutexLock lock(&mutex_);
  return entry->kernel;
}

KernelCache::KernelPointer KernelCache::Find(const KernelKey& key) {
  absl::MutexLock lock(&mutex_);
  Entry& entry = EntryOf(key);
  if (entry.done) {
    ++counts_.memory_hits;
    return entry.kernel.ok() ? *entry.kernel : nullptr;
  }
  if (!entry.queued && queue_.size() < options_.queue_limit) {
    entry.queued = true;
    queue_.push_back(key);
    PublishQueue();
  }
  return nullptr;
}

KernelCache::Counts KernelCache::counts() const {
  absl::MutexLock lock(&mutex_);
  return counts_;
}

absl::StatusOr<KernelCache::KernelPointer> KernelCache::Make(const KernelKey& key) {
  if (store_) {
    if (std::optional<CompiledKernel> kernel = store_->Load(key)) {
      absl::MutexLock lock(&mutex_);
      ++counts_.disk_hits;
      if (options_.counters != nullptr) Count(options_.counters->counts().kernel_loads);
      return std::make_shared<const CompiledKernel>(*std::move(kernel));
    }
  }
  absl::StatusOr<CompiledKernel> kernel = Compile(key);
  if (!kernel.ok()) return kernel.status();
  if (store_) {
    // The kernel serves without its file; the next process compiles again.
    const absl::StatusOr<uint64_t> evicted = store_->Save(key, *kernel);
    if (!evicted.ok()) spdlog::warn("kernel cache: not saved: {}", evicted.status().ToString());
    if (evicted.ok() && options_.counters != nullptr) Count(options_.counters->counts().kernel_evictions, *evicted);
  }
  return std::make_shared<const CompiledKernel>(*std::move(kernel));
}

absl::StatusOr<CompiledKernel> KernelCache::Compile(const KernelKey& key) {
  const uint64_t start_ns = MonotonicNanos();
  absl::StatusOr<CompiledKernel> kernel = compile_(key);
  if (options_.counters != nullptr) {
    WorkerCounts& counts = options_.counters->counts();
    Observe(counts.compile_duration, MonotonicNanos() - start_ns);
    Count(kernel.ok() ? counts.compiles_ok : counts.compiles_failed);
  }
  absl::MutexLock lock(&mutex_);
  ++counts_.compiles;
  if (!kernel.ok()) ++counts_.failures;
  return kernel;
}

void KernelCache::PublishQueue() {
  if (options_.counters != nullptr) SetGauge(options_.counters->gauges().compiles_waiting, queue_.size());
}

void KernelCache::MakeAndPublish(const KernelKey& key) {
  absl::StatusOr<KernelPointer> kernel = Make(key);
  absl::MutexLock lock(&mutex_);
  Entry& entry = EntryOf(key);
  if (kernel.ok()) {
    ++kernels_;
    kernel_bytes_ += (*kernel)->cubin.size();
  }
  if (options_.counters != nullptr) {
    SetGauge(options_.counters->gauges().kernels, kernels_);
    SetGauge(options_.counters->gauges().kernel_bytes, kernel_bytes_);
  }
  entry.kernel = std::move(kernel);
  entry.done = true;
}

void KernelCache::RunThread() {
  while (true) {
    KernelKey key;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](KernelCache* cache) ABSL_NO_THREAD_SAFETY_ANALYSIS { return cache->stopping_ || !cache->queue_.empty(); },
          this));
      if (stopping_) return;
      key = std::move(queue_.front());
      queue_.pop_front();
      PublishQueue();
    }
    MakeAndPublish(key);
  }
}

}  // namespace gemmd
