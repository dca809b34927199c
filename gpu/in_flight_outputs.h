// SPDX-License-Identifier: Apache-2.0
// The outputs of jobs in flight (accepted and not yet completed), so that two jobs never write the same bytes at once.
// Used by the worker, which adds a job after its check and removes it before its completion is written.
#ifndef GEMMD_GPU_IN_FLIGHT_OUTPUTS_H_
#define GEMMD_GPU_IN_FLIGHT_OUTPUTS_H_

#include "gpu/job.h"
#include "gpu/memory_window.h"
#include "proto/job.h"

#include "absl/container/flat_hash_map.h"

#include <cstddef>
#include <cstdint>
#include <map>

namespace gemmd {

// Not thread-safe.
class InFlightOutputs {
 public:
  // Adds the outputs of a checked job; Rule::kNone on success. If one overlaps an output in flight, adds nothing and
  // returns kOverlapsInFlight with the field of the output.
  Reason Add(const Gemm& gemm);

  // Requires: Add(gemm) succeeded and it was not removed since.
  void Remove(const Gemm& gemm);

  size_t size() const { return size_; }

 private:
  // By begin. Nothing longer than `longest` is in there, so whoever overlaps [begin, end) starts after begin - longest.
  struct Region {
    std::multimap<uint64_t, MemoryWindow> windows;
    uint64_t longest = 0;
  };

  bool OverlapsAny(const MemoryWindow& window) const;
  void Insert(const MemoryWindow& window);
  void Erase(const MemoryWindow& window);

  absl::flat_hash_map<uint64_t, Region> regions_;
  size_t size_ = 0;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_IN_FLIGHT_OUTPUTS_H_
