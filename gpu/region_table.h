// SPDX-License-Identifier: Apache-2.0
// The worker's regions by id: client memory, the front end's staging arena, resident tensors. The control thread adds
// and closes, the loop looks up, and any thread that drops the last job on a closed region ends it.
#ifndef GEMMD_GPU_REGION_TABLE_H_
#define GEMMD_GPU_REGION_TABLE_H_

#include "gpu/device.h"
#include "proto/job.h"
#include "proto/shared_memory.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace gemmd {

// What a lookup found. While `memory` is held, the region stays mapped.
struct RegionHit {
  Rule rule = Rule::kUnknownRegion;  // kNone: found. kRegionClosed: closed, but a job in flight still holds it.
  Access access = Access::kReadOnly;
  std::shared_ptr<DeviceMemory> memory;
};

// Thread-safe.
class RegionTable {
 public:
  RegionTable() = default;
  RegionTable(const RegionTable&) = delete;
  RegionTable& operator=(const RegionTable&) = delete;

  // False if the id is 0 or in use. Requires: ids are never reused.
  bool Add(uint64_t id, std::shared_ptr<DeviceMemory> memory, Access access);

  RegionHit Find(uint64_t id) const;

  // Closes a region for new jobs. `on_gone` is called once, after the memory was released: inside this call if nobody
  // holds it, otherwise by the thread that drops the last holder; it must not block. False (and no call) if the id is
  // not open.
  bool Close(uint64_t id, std::function<void()> on_gone);

  // Open regions, and closed ones that are still held.
  size_t size() const;

 private:
  class Pin;
  struct Entry {
    std::shared_ptr<Pin> pin;
    Access access = Access::kReadOnly;
  };

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Entry> open_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::weak_ptr<Pin>> closing_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_GPU_REGION_TABLE_H_
