// SPDX-License-Identifier: Apache-2.0
// Blocks up to 64 KiB are rounded to powers of two and kept in one free list per size, since most requests of a decode
// step need the same few sizes again and again. Everything else comes from a best-fit search over free extents that are
// joined with their neighbours when they come back. When that search fails, the free lists are emptied into the extents
// and it is tried once more, so that cached blocks never make the arena seem full.
#include "server/staging_arena.h"

#include "proto/shared_memory.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

#include <array>
#include <atomic>
#include <bit>
#include <iterator>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr uint64_t kSmallestBlock = 64;  // A cache line; matrices need 16.
constexpr uint64_t kLargestListed = 64 << 10;
constexpr uint64_t kPage = 4096;   // Rounding of longer blocks: few distinct sizes, little waste.
constexpr size_t kListCount = 11;  // 64, 128, ..., 64 Ki.
// Bound on each list: 8 MiB in all of them together.
constexpr size_t kBlocksPerList = 64;

uint64_t BlockSize(uint64_t byte_size) {
  if (byte_size <= kSmallestBlock) return kSmallestBlock;
  if (byte_size <= kLargestListed) return std::bit_ceil(byte_size);
  return (byte_size + kPage - 1) / kPage * kPage;
}

size_t ListOf(uint64_t block_size) { return static_cast<size_t>(std::countr_zero(block_size / kSmallestBlock)); }

}  // namespace

// Thread-safe.
class ArenaBlocks {
 public:
  explicit ArenaBlocks(SharedMapping mapping) : mapping_(std::move(mapping)) {
    absl::MutexLock lock(&mutex_);
    AddExtent(0, mapping_.byte_size() / kSmallestBlock * kSmallestBlock);
  }

  std::byte* data() const { return mapping_.data(); }
  uint64_t byte_size() const { return mapping_.byte_size(); }

  absl::StatusOr<uint64_t> Take(uint64_t byte_size) {
    if (byte_size > mapping_.byte_size()) return Full(byte_size);  // Before rounding, which could overflow.
    const uint64_t block_size = BlockSize(byte_size);
    absl::MutexLock lock(&mutex_);
    if (block_size <= kLargestListed) {
      std::vector<uint64_t>& list = lists_[ListOf(block_size)];
      if (!list.empty()) {
        const uint64_t offset = list.back();
        list.pop_back();
        bytes_in_use_ += block_size;
        return offset;
      }
    }
    uint64_t offset = 0;
    if (!TakeFromExtents(block_size, offset)) {
      EmptyLists();
      if (!TakeFromExtents(block_size, offset)) return Full(byte_size);
    }
    bytes_in_use_ += block_size;
    return offset;
  }

  void Give(uint64_t offset, uint64_t byte_size) {
    const uint64_t block_size = BlockSize(byte_size);
    absl::MutexLock lock(&mutex_);
    bytes_in_use_ -= block_size;
    if (block_size <= kLargestListed) {
      std::vector<uint64_t>& list = lists_[ListOf(block_size)];
      if (list.size() < kBlocksPerList) {
        list.push_back(offset);
        return;
      }
    }
    AddExtent(offset, block_size);
  }

  // Without the lock: a scrape must not hold up a request.
  uint64_t bytes_in_use() const { return bytes_in_use_.load(std::memory_order_relaxed); }

 private:
  static absl::Status Full(uint64_t byte_size) {
    return absl::ResourceExhaustedError(absl::StrCat("staging: no room for ", byte_size, " inline bytes now"));
  }

  bool TakeFromExtents(uint64_t block_size, uint64_t& offset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto best = by_size_.lower_bound({block_size, 0});
    if (best == by_size_.end()) return false;
    const auto [extent_size, extent_offset] = *best;
    by_size_.erase(best);
    by_offset_.erase(extent_offset);
    if (extent_size > block_size) {
      by_offset_.emplace(extent_offset + block_size, extent_size - block_size);
      by_size_.insert({extent_size - block_size, extent_offset + block_size});
    }
    offset = extent_offset;
    return true;
  }

  // Adds a free extent, joined with the free ones that touch it.
  void AddExtent(uint64_t offset, uint64_t size) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (size == 0) return;
    auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.end() && next->first == offset + size) {
      size += next->second;
      by_size_.erase({next->second, next->first});
      next = by_offset_.erase(next);
    }
    if (next != by_offset_.begin()) {
      const auto previous = std::prev(next);
      if (previous->first + previous->second == offset) {
        offset = previous->first;
        size += previous->second;
        by_size_.erase({previous->second, previous->first});
        by_offset_.erase(previous);
      }
    }
    by_offset_.emplace(offset, size);
    by_size_.insert({size, offset});
  }

  void EmptyLists() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    uint64_t block_size = kSmallestBlock;
    for (std::vector<uint64_t>& list : lists_) {
      for (const uint64_t offset : list) AddExtent(offset, block_size);
      list.clear();
      block_size *= 2;
    }
  }

  const SharedMapping mapping_;
  mutable absl::Mutex mutex_;
  std::array<std::vector<uint64_t>, kListCount> lists_ ABSL_GUARDED_BY(mutex_);
  absl::btree_map<uint64_t, uint64_t> by_offset_ ABSL_GUARDED_BY(mutex_);           // Offset to size.
  absl::btree_set<std::pair<uint64_t, uint64_t>> by_size_ ABSL_GUARDED_BY(mutex_);  // (size, offset).
  std::atomic<uint64_t> bytes_in_use_{0};                                           // Written under the lock.
};

ArenaLease::ArenaLease(ArenaLease&& other) noexcept { *this = std::move(other); }

ArenaLease& ArenaLease::operator=(ArenaLease&& other) noexcept {
  std::swap(blocks_, other.blocks_);
  std::swap(region_id_, other.region_id_);
  std::swap(offset_, other.offset_);
  std::swap(byte_size_, other.byte_size_);
  std::swap(data_, other.data_);
  return *this;
}

ArenaLease::~ArenaLease() {
  if (blocks_ != nullptr) blocks_->Give(offset_, byte_size_);
}

absl::StatusOr<std::unique_ptr<StagingArena>> StagingArena::Create(uint64_t byte_size, WorkerPool& pool) {
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(byte_size);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd->get(), byte_size, Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();

  const uint64_t region_id = pool.NextRegionId();
  absl::Status status;
  absl::Notification mapped;
  pool.MapRegion(region_id, {RegionKind::kHost, Access::kReadWrite, byte_size}, *std::move(fd),
                 [&status, &mapped](const absl::Status& result) {
                   status = result;
                   mapped.Notify();
                 });
  mapped.WaitForNotification();
  if (!status.ok()) return status;
  auto blocks = std::make_shared<ArenaBlocks>(*std::move(mapping));
  return std::unique_ptr<StagingArena>(new StagingArena(region_id, std::move(blocks)));
}

absl::StatusOr<ArenaLease> StagingArena::Allocate(uint64_t byte_size) {
  const absl::StatusOr<uint64_t> offset = blocks_->Take(byte_size);
  if (!offset.ok()) return offset.status();
  ArenaLease lease;
  lease.blocks_ = blocks_;
  lease.region_id_ = region_id_;
  lease.offset_ = *offset;
  lease.byte_size_ = byte_size;
  lease.data_ = blocks_->data() + *offset;
  return lease;
}

uint64_t StagingArena::byte_size() const { return blocks_->byte_size(); }
uint64_t StagingArena::bytes_in_use() const { return blocks_->bytes_in_use(); }

}  // namespace gemmd
