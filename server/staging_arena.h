// SPDX-License-Identifier: Apache-2.0
// Memory for bytes on their way between gRPC messages and a worker: one sealed memfd, mapped here and, as a host
// region, in every worker. Services lease blocks of it for the time of a job.
#ifndef GEMMD_SERVER_STAGING_ARENA_H_
#define GEMMD_SERVER_STAGING_ARENA_H_

#include "server/worker_pool.h"

#include "absl/status/statusor.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace gemmd {

class ArenaBlocks;  // Defined in the source: the mapping and its free blocks.

// A block of the arena; given back on destruction. Move-only. Keep it until the job that uses it is done, even if the
// call is over. Its bytes are not cleared.
class ArenaLease {
 public:
  ArenaLease() = default;
  ArenaLease(ArenaLease&& other) noexcept;
  ArenaLease& operator=(ArenaLease&& other) noexcept;
  ~ArenaLease();

  bool valid() const { return blocks_ != nullptr; }
  uint64_t region_id() const { return region_id_; }
  uint64_t offset() const { return offset_; }        // Bytes from the start of the region; a multiple of 64.
  uint64_t byte_size() const { return byte_size_; }  // As asked for.
  std::byte* data() const { return data_; }

 private:
  friend class StagingArena;

  std::shared_ptr<ArenaBlocks> blocks_;
  uint64_t region_id_ = 0;
  uint64_t offset_ = 0;
  uint64_t byte_size_ = 0;
  std::byte* data_ = nullptr;
};

// Thread-safe. Leases may outlive the arena.
class StagingArena {
 public:
  // Makes and maps the memory, and waits until the pool has taken it: start-up only. Errors: RESOURCE_EXHAUSTED,
  // INVALID_ARGUMENT (zero size), and those of WorkerPool::MapRegion.
  static absl::StatusOr<std::unique_ptr<StagingArena>> Create(uint64_t byte_size, WorkerPool& pool);

  // A block of at least `byte_size` bytes (0 is allowed). Takes about 100 ns up to 64 KiB, else a tree search.
  // Errors: RESOURCE_EXHAUSTED (full, or no block is long enough).
  absl::StatusOr<ArenaLease> Allocate(uint64_t byte_size);

  uint64_t region_id() const { return region_id_; }
  uint64_t byte_size() const;
  uint64_t bytes_in_use() const;  // Leased, rounding included.

 private:
  StagingArena(uint64_t region_id, std::shared_ptr<ArenaBlocks> blocks)
      : region_id_(region_id), blocks_(std::move(blocks)) {}

  const uint64_t region_id_;
  const std::shared_ptr<ArenaBlocks> blocks_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_STAGING_ARENA_H_
