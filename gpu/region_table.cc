// SPDX-License-Identifier: Apache-2.0
#include "gpu/region_table.h"

#include <algorithm>
#include <utility>

namespace gemmd {

// Jobs hold memory through aliases of a Pin, so its destructor is the moment when the last holder has gone.
class RegionTable::Pin {
 public:
  explicit Pin(std::shared_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {}
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;
  ~Pin() {
    memory_.reset();
    if (on_gone_) on_gone_();
  }

  DeviceMemory* memory() const { return memory_.get(); }
  void set_on_gone(std::function<void()> on_gone) { on_gone_ = std::move(on_gone); }

 private:
  std::shared_ptr<DeviceMemory> memory_;
  std::function<void()> on_gone_;
};

bool RegionTable::Add(uint64_t id, std::shared_ptr<DeviceMemory> memory, Access access) {
  if (id == 0) return false;
  auto pin = std::make_shared<Pin>(std::move(memory));
  absl::MutexLock lock(&mutex_);
  if (closing_.contains(id)) return false;
  return open_.try_emplace(id, Entry{pin, access}).second;
}

RegionHit RegionTable::Find(uint64_t id) const {
  absl::MutexLock lock(&mutex_);
  if (const auto found = open_.find(id); found != open_.end()) {
    const Entry& entry = found->second;
    return {Rule::kNone, entry.access, std::shared_ptr<DeviceMemory>(entry.pin, entry.pin->memory())};
  }
  const auto closing = closing_.find(id);
  const bool held = closing != closing_.end() && !closing->second.expired();
  return {held ? Rule::kRegionClosed : Rule::kUnknownRegion, Access::kReadOnly, nullptr};
}

bool RegionTable::Close(uint64_t id, std::function<void()> on_gone) {
  std::shared_ptr<Pin> pin;  // Outlives the lock: its destructor unmaps and calls back.
  absl::MutexLock lock(&mutex_);
  const auto found = open_.find(id);
  if (found == open_.end()) return false;
  pin = std::move(found->second.pin);
  open_.erase(found);
  pin->set_on_gone(std::move(on_gone));
  absl::erase_if(closing_, [](const auto& entry) { return entry.second.expired(); });
  closing_.emplace(id, pin);
  return true;
}

size_t RegionTable::size() const {
  absl::MutexLock lock(&mutex_);
  const auto held = std::count_if(closing_.begin(), closing_.end(), [](const auto& e) { return !e.second.expired(); });
  return open_.size() + static_cast<size_t>(held);
}

}  // namespace gemmd
