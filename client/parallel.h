// SPDX-License-Identifier: Apache-2.0
// A loop over [0, count) on a few threads that live for the call. Used by the reference and the random data, whose
// arrays are large; any thread.
#ifndef GEMMD_CLIENT_PARALLEL_H_
#define GEMMD_CLIENT_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace gemmd {

inline constexpr int64_t kMaxParallelThreads = 8;  // Enough to be short of memory bandwidth.

// Calls body(i) once for each i, in any order. body must be safe to call from several threads at once.
template <typename Body>
void ParallelFor(int64_t count, const Body& body) {
  const int64_t cores = static_cast<int64_t>(std::thread::hardware_concurrency());
  const int64_t thread_count = std::clamp<int64_t>(std::min(count, cores), 1, kMaxParallelThreads);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i);
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < thread_count; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace gemmd

#endif  // GEMMD_CLIENT_PARALLEL_H_
