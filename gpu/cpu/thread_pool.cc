// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/thread_pool.h"

#include <cstddef>

namespace gemmd {

ThreadPool::ThreadPool(int threads) {
  threads_.reserve(static_cast<size_t>(threads - 1));
  for (int slot = 1; slot < threads; ++slot) threads_.emplace_back([this, slot] { Serve(slot); });
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(int64_t count, Body body) {
  if (count <= 1 || threads_.empty()) {
    for (int64_t index = 0; index < count; ++index) body(index, 0);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    body_ = &body;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_ = static_cast<int>(threads_.size());
    ++generation_;
    wake_.SignalAll();
  }
  TakeIndices(count, body, 0);
  absl::MutexLock lock(&mutex_);
  while (busy_ != 0) idle_.Wait(&mutex_);
  body_ = nullptr;
}

void ThreadPool::Serve(int slot) {
  uint64_t served = 0;
  mutex_.Lock();
  while (true) {
    while (!stopping_ && generation_ == served) wake_.Wait(&mutex_);
    if (stopping_) break;
    served = generation_;
    const Body body = *body_;
    const int64_t count = count_;
    mutex_.Unlock();
    TakeIndices(count, body, slot);
    mutex_.Lock();
    if (--busy_ == 0) idle_.Signal();
  }
  mutex_.Unlock();
}

void ThreadPool::TakeIndices(int64_t count, Body body, int slot) {
  // Relaxed: the mutex orders everything else.
  for (int64_t index = next_.fetch_add(1, std::memory_order_relaxed); index < count;
       index = next_.fetch_add(1, std::memory_order_relaxed)) {
    body(index, slot);
  }
}

}  // namespace gemmd
