// SPDX-License-Identifier: Apache-2.0
// Memory that clients share with gemmd: which regions there are, whose they are, and their way through registration and
// closing. The mapping itself happens in the workers (WorkerPool); the front end maps no client memory.
//
// A region is mapping, ready, or closing. Its quota is given back when the workers have let go of it, so that a client
// cannot pile up memory by closing regions under running jobs.
#ifndef GEMMD_SERVER_REGION_REGISTRY_H_
#define GEMMD_SERVER_REGION_REGISTRY_H_

#include "proto/control.h"
#include "proto/unique_fd.h"
#include "proto/worker_counters.h"
#include "server/quotas.h"
#include "server/session.h"
#include "server/usage_ledger.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {

struct RegionView {
  uint64_t region_id = 0;
  RegionKind kind = RegionKind::kHost;
  uint64_t byte_size = 0;
  bool writable = false;
  WorkerMask workers = kAllWorkers;  // Who can reach it: those on its device.
  std::string device = {};           // GPU UUID of memory on a GPU, "cpu" of a pool without one; else empty.
};

struct RegionExtent {
  uint64_t byte_size = 0;
  bool writable = false;
};

// What an operator may see of a region: nothing that its session said, and no way to use it.
struct RegionSnapshot {
  uint64_t session = 0;  // Id.
  RegionView view;
  absl::string_view state;  // "mapping", "ready" or "closing".
  uint64_t age_ns = 0;
};

// Canonical status codes, 0 (OK) to 16 (UNAUTHENTICATED).
inline constexpr size_t kStatusCodeCount = 17;

// What sessions can have regions of.
inline constexpr std::array<RegionKind, 5> kSharedKinds = {
    RegionKind::kHost, RegionKind::kSharedMemory, RegionKind::kDevice, RegionKind::kDeviceIpc, RegionKind::kPool};

struct RegionKindCounts {
  uint64_t regions = 0;  // That exist now, closing ones included.
  uint64_t bytes = 0;
  DurationCounts imports;
  std::array<uint64_t, kStatusCodeCount> registrations_total{};  // Attempts by resulting status code.
};

struct RegionCounts {
  std::array<RegionKindCounts, kRegionKinds> kinds;
  uint64_t reaped_total = 0;  // Closed because their session ended.

  RegionKindCounts& of(RegionKind kind) { return kinds[static_cast<size_t>(kind)]; }
  const RegionKindCounts& of(RegionKind kind) const { return kinds[static_cast<size_t>(kind)]; }
  uint64_t regions() const;
  uint64_t bytes() const;
};

// A pool that was made: what its client needs to map it.
struct PoolRegion {
  uint64_t region_id = 0;
  std::string device;
  UniqueFd fd;
};

// Thread-safe. Callbacks are called exactly once, on the caller's thread (refusals) or on a thread of the worker pool,
// and must not block.
class RegionRegistry : public std::enable_shared_from_this<RegionRegistry> {
 public:
  using RegisterCallback = std::function<void(absl::StatusOr<uint64_t> region_id)>;
  using PoolCallback = std::function<void(absl::StatusOr<PoolRegion>)>;
  using CloseCallback = std::function<void(absl::Status)>;

  // `pool` must outlive the registry.
  static std::shared_ptr<RegionRegistry> Create(const Quotas& quotas, WorkerPool& pool);

  // Registers the first `extent.byte_size` bytes of a sealed memfd.
  // Errors: INVALID_ARGUMENT (size, descriptor), RESOURCE_EXHAUSTED (quota), UNAUTHENTICATED (anonymous or ended
  // session), and those of WorkerPool::MapRegion.
  void RegisterHost(const std::shared_ptr<Session>& session, const RegionExtent& extent, UniqueFd fd,
                    RegisterCallback done);

  // Registers POSIX shared memory by its shm_open name ("/name", no further slash, at most 255 bytes).
  // Errors: as above, and NOT_FOUND with one text for no such object, one of another user, and one that is not regular
  // shared memory; PERMISSION_DENIED for a session that is not from this machine.
  void RegisterSharedMemory(const std::shared_ptr<Session>& session, absl::string_view name, const RegionExtent& extent,
                            RegisterCallback done);

  // Registers GPU memory of the session's process: a CUDA allocation with a descriptor, or one by its legacy handle.
  // `gpu`: UUID. Errors: as RegisterHost, and INVALID_ARGUMENT for a GPU that no worker runs on; PERMISSION_DENIED for
  // a session that is not from this machine.
  void RegisterDevice(const std::shared_ptr<Session>& session, const RegionExtent& extent, absl::string_view gpu,
                      UniqueFd fd, RegisterCallback done);
  void RegisterDeviceIpc(const std::shared_ptr<Session>& session, const RegionExtent& extent, absl::string_view gpu,
                         const IpcMemory& ipc, RegisterCallback done);

  // Allocates memory for the session to map, zeroed: on the GPU that `device` names, in shared host memory if it is
  // "cpu", and on the device with most room if it is empty. The session writes to it; gemmd ends it with the session.
  // Errors: as RegisterDevice; RESOURCE_EXHAUSTED if the device is full.
  void CreatePool(const std::shared_ptr<Session>& session, uint64_t byte_size, absl::string_view device,
                  PoolCallback done);

  // Closes a region; done when the last job that uses it has finished. Errors: as Find.
  void Close(const Session& session, uint64_t region_id, CloseCallback done);

  // Closes all regions of an ended session (MarkClosed first), those still mapping included.
  void CloseAllOf(const Session& session);

  // Errors: NOT_FOUND (one text for unknown and foreign), FAILED_PRECONDITION (closing), UNAUTHENTICATED (anonymous).
  absl::StatusOr<RegionView> Find(const Session& session, uint64_t region_id) const;

  // The session's ready regions, by id.
  std::vector<RegionView> List(const Session& session) const;

  // Of all sessions, by id; at most `limit`, the first ones.
  std::vector<RegionSnapshot> Snapshot(size_t limit) const;

  RegionCounts Counts() const;

 private:
  enum class State : uint8_t { kMapping, kReady, kClosing };
  struct Region {
    RegionView view;
    UsageLedger::Account account;
    State state = State::kMapping;
    uint64_t registered_ns = 0;  // CLOCK_MONOTONIC.
  };
  // What a registration has decided before the workers are asked.
  struct Request {
    RegionKind kind = RegionKind::kHost;
    RegionExtent extent;
    UniqueFd fd = UniqueFd();
    std::string device = {};
    WorkerMask workers = kAllWorkers;
    IpcMemory ipc = {};
  };

  RegionRegistry(const Quotas& quotas, WorkerPool& pool);

  absl::StatusOr<uint64_t> Reserve(const Session& session, const Request& request);
  void Map(const std::shared_ptr<Session>& session, Request request, RegisterCallback done);
  void RegisterGpuMemory(const std::shared_ptr<Session>& session, absl::Status status, absl::string_view gpu,
                         Request request, RegisterCallback done);
  absl::Status OnMapped(uint64_t region_id, const absl::Status& status, uint64_t sent_ns);
  absl::StatusOr<PoolRegion> OnAllocated(uint64_t region_id, absl::StatusOr<PoolMemory> memory, uint64_t sent_ns);
  void Unmap(uint64_t region_id, CloseCallback done);
  void Forget(uint64_t region_id);
  void CountRegistration(RegionKind kind, const absl::Status& status);
  absl::StatusOr<RegionView> FindLocked(const Session& session, uint64_t region_id) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  WorkerPool& pool_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Region> regions_ ABSL_GUARDED_BY(mutex_);
  UsageLedger ledger_ ABSL_GUARDED_BY(mutex_);
  RegionCounts counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_REGION_REGISTRY_H_
