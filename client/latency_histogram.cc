// SPDX-License-Identifier: Apache-2.0
#include "client/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace gemmd {

LatencyHistogram::LatencyHistogram() : counts_(IndexOf(kMaxNanos) + 1, 0) {}

void LatencyHistogram::Record(uint64_t nanos) {
  const uint64_t value = std::min(nanos, kMaxNanos);
  ++counts_[IndexOf(value)];
  ++count_;
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

double LatencyHistogram::mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

uint64_t LatencyHistogram::Quantile(double quantile) const {
  if (count_ == 0) return 0;
  const double wanted = std::ceil(std::clamp(quantile, 0.0, 1.0) * static_cast<double>(count_));
  const uint64_t rank = std::max<uint64_t>(1, static_cast<uint64_t>(wanted));
  uint64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::min(UpperBound(i), max_);
  }
  return max_;
}

// Values below 2^(kSubBits+1) have a bucket each; above, the kSubBits bits below the leading one choose the bucket.
size_t LatencyHistogram::IndexOf(uint64_t nanos) {
  if (nanos < uint64_t{2} << kSubBits) return static_cast<size_t>(nanos);
  const int shift = static_cast<int>(std::bit_width(nanos)) - 1 - kSubBits;
  return (static_cast<size_t>(shift) << kSubBits) + static_cast<size_t>(nanos >> shift);
}

uint64_t LatencyHistogram::UpperBound(size_t index) {
  if (index < size_t{2} << kSubBits) return index;
  const size_t shift = (index >> kSubBits) - 1;
  const uint64_t leading = index - (shift << kSubBits);
  return ((leading + 1) << shift) - 1;
}

}  // namespace gemmd
