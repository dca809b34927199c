// SPDX-License-Identifier: Apache-2.0
// A latency histogram in the manner of HdrHistogram (which Debian 12 does not package for C or C++): log-linear buckets
// that keep three significant digits over the whole range. Used by gemmload. Not thread-safe; merge one per thread.
#ifndef GEMMD_CLIENT_LATENCY_HISTOGRAM_H_
#define GEMMD_CLIENT_LATENCY_HISTOGRAM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {

class LatencyHistogram {
 public:
  // Values beyond an hour count as an hour.
  static constexpr uint64_t kMaxNanos = uint64_t{3600} * 1'000'000'000;

  LatencyHistogram();

  void Record(uint64_t nanos);
  void Merge(const LatencyHistogram& other);

  uint64_t count() const { return count_; }
  uint64_t max() const { return max_; }  // Exact.
  double mean() const;                   // Exact; 0 if empty.

  // The smallest recorded value v, to three digits and rounded up, such that `quantile` (0 to 1) of all are at most v.
  // 0 if empty.
  uint64_t Quantile(double quantile) const;

 private:
  // 2048 linear steps before the first doubling, then 1024 in each doubling: a step is at most 1/1024 of its value.
  static constexpr int kSubBits = 10;
  static size_t IndexOf(uint64_t nanos);
  static uint64_t UpperBound(size_t index);

  std::vector<uint64_t> counts_;
  uint64_t count_ = 0;
  uint64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_LATENCY_HISTOGRAM_H_
