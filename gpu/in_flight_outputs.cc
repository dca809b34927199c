// SPDX-License-Identifier: Apache-2.0
#include "gpu/in_flight_outputs.h"

#include <algorithm>
#include <cstdlib>

namespace gemmd {

Reason InFlightOutputs::Add(const Gemm& gemm) {
  const MemoryWindow d = WindowOf(gemm.operand(OperandIndex::kD));
  const MemoryWindow sf = WindowOf(gemm.operand(OperandIndex::kSfd));
  if (OverlapsAny(d)) return {.field = JobField::kD, .rule = Rule::kOverlapsInFlight};
  if (OverlapsAny(sf)) return {.field = JobField::kSfd, .rule = Rule::kOverlapsInFlight};
  Insert(d);
  Insert(sf);
  return {};
}

void InFlightOutputs::Remove(const Gemm& gemm) {
  Erase(WindowOf(gemm.operand(OperandIndex::kD)));
  Erase(WindowOf(gemm.operand(OperandIndex::kSfd)));
}

bool InFlightOutputs::OverlapsAny(const MemoryWindow& window) const {
  if (window.empty()) return false;
  const auto found = regions_.find(window.region);
  if (found == regions_.end()) return false;
  const Region& region = found->second;
  const uint64_t first = window.begin < region.longest ? 0 : window.begin - region.longest;
  const auto end = region.windows.lower_bound(window.end);
  return std::any_of(region.windows.lower_bound(first), end,
                     [&](const auto& entry) { return Overlap(entry.second, window); });
}

void InFlightOutputs::Insert(const MemoryWindow& window) {
  if (window.empty()) return;
  Region& region = regions_[window.region];
  region.windows.emplace(window.begin, window);
  region.longest = std::max(region.longest, window.end - window.begin);
  ++size_;
}

void InFlightOutputs::Erase(const MemoryWindow& window) {
  if (window.empty()) return;
  const auto found = regions_.find(window.region);
  if (found == regions_.end()) std::abort();
  auto& windows = found->second.windows;
  const auto [begin, end] = windows.equal_range(window.begin);
  const auto entry = std::find_if(begin, end, [&](const auto& candidate) { return candidate.second == window; });
  if (entry == end) std::abort();
  windows.erase(entry);
  if (windows.empty()) regions_.erase(found);
  --size_;
}

}  // namespace gemmd
