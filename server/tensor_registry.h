// SPDX-License-Identifier: Apache-2.0
// Resident tensors: which there are, whose they are, and in which worker they live. A private tensor ends with its
// session; a shared one is found by name by all sessions of one user and stays until it is deleted.
//
// A tensor is a region in its worker. Views pin it: the worker is told to free it when it is deleted and the last view
// is gone. Until then its bytes count against the quota.
#ifndef GEMMD_SERVER_TENSOR_REGISTRY_H_
#define GEMMD_SERVER_TENSOR_REGISTRY_H_

#include "proto/element_type.h"
#include "proto/job.h"
#include "server/quotas.h"
#include "server/session.h"
#include "server/usage_ledger.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

// Longest name of a tensor, in bytes: a path inside a model with room to spare.
inline constexpr size_t kMaxTensorNameBytes = 256;

class PinnedTensor;  // Defined in the source: keeps the memory of one tensor.

// What a request needs to use a tensor. Keep the view until the last job that names the tensor is done.
struct TensorView {
  uint64_t region_id = 0;  // Also the tensor's id.
  DType dtype = DType::kNone;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};  // Contiguous, row-major.
  uint64_t byte_size = 0;
  int worker = kAnyWorker;  // Index of the worker where it lives.
  std::shared_ptr<PinnedTensor> pin;
};

// What lists show.
struct TensorRecord {
  uint64_t id = 0;
  std::string name;
  bool shared = false;
  DType dtype = DType::kNone;
  std::vector<int64_t> shape;
  uint64_t byte_size = 0;
  uint64_t bytes_written = 0;
  uint32_t references = 0;
  int worker = kAnyWorker;
};

// What an operator may see of a tensor: not its name, which belongs to those who may use it.
struct TensorSnapshot {
  uint64_t id = 0;
  uint64_t session = 0;  // Id of the one that made it; a shared tensor may outlive it.
  bool shared = false;
  DType dtype = DType::kNone;
  uint64_t byte_size = 0;
  uint32_t references = 0;  // Sessions that hold one.
  int64_t pins = 0;         // Uses by jobs and transfers at this moment.
  int worker = kAnyWorker;
  uint64_t age_ns = 0;
};

struct TensorSpec {
  DType dtype = DType::kNone;
  std::vector<int64_t> shape;
  std::string name;
  bool shared = false;
};

struct TensorCounts {
  uint64_t private_tensors = 0;
  uint64_t shared_tensors = 0;
  uint64_t bytes = 0;  // Of all, deleted but still pinned ones included.
};

// Thread-safe. Callbacks are called exactly once, on the caller's thread (refusals) or on a thread of the worker pool,
// and must not block.
class TensorRegistry : public std::enable_shared_from_this<TensorRegistry> {
 public:
  using CreateCallback = std::function<void(absl::StatusOr<TensorRecord>)>;

  // `pool` must outlive the registry.
  static std::shared_ptr<TensorRegistry> Create(const Quotas& quotas, WorkerPool& pool);

  // Allocates a tensor, filled with zeros; the session holds a reference to it.
  // Errors: INVALID_ARGUMENT (dtype, shape, name), ALREADY_EXISTS (shared name), RESOURCE_EXHAUSTED (quota, memory),
  // UNAUTHENTICATED (anonymous or ended session), UNAVAILABLE (no ready worker).
  void CreateTensor(const std::shared_ptr<Session>& session, TensorSpec spec, CreateCallback done);

  // Pins a tensor that the session may name: its own, or a shared one of its user.
  // Errors: NOT_FOUND (one text for unknown, foreign and deleted), UNAUTHENTICATED (anonymous).
  absl::StatusOr<TensorView> Find(const Session& session, uint64_t tensor_id) const;

  // Looks a tensor up by id or shared name and adds a reference of the session to it. Errors: as Find.
  absl::StatusOr<TensorRecord> Get(const Session& session, uint64_t tensor_id);
  absl::StatusOr<TensorRecord> GetByName(const Session& session, absl::string_view name);

  // The tensors that the session can name, by id.
  std::vector<TensorRecord> List(const Session& session) const;

  // Removes a tensor; its name is free at once. Errors: as Find.
  absl::Status Delete(const Session& session, uint64_t tensor_id);

  // Deletes the private tensors of an ended session (MarkClosed first) and drops its references to shared ones.
  void CloseAllOf(const Session& session);

  // Adds to what records show as bytes_written.
  static void AddBytesWritten(const TensorView& view, uint64_t byte_size);

  // Of all sessions, by id; at most `limit`, the first ones.
  std::vector<TensorSnapshot> Snapshot(size_t limit) const;

  TensorCounts Counts() const;

 private:
  friend class PinnedTensor;

  struct Tensor {
    TensorView view;  // The registry's own pin.
    std::string name;
    bool shared = false;
    uint64_t creator = 0;  // Session id.
    Identity identity;     // Of its creator.
    UsageLedger::Account account;
    absl::flat_hash_set<uint64_t> references;  // Session ids.
    bool ready = false;                        // Allocated; before that only the name and the quota are taken.
    uint64_t created_ns = 0;                   // CLOCK_MONOTONIC.
    bool abandoned = false;                    // Its session ended while it was being allocated.
  };
  using SharedName = std::pair<Identity, std::string>;

  TensorRegistry(const Quotas& quotas, WorkerPool& pool);

  absl::Status Reserve(const Session& session, const TensorSpec& spec, const TensorView& view);
  absl::StatusOr<TensorRecord> OnAllocated(uint64_t tensor_id, const absl::StatusOr<int>& worker);
  // Tells the pool to free a tensor that is no longer pinned, and then gives its quota back.
  void FreeMemory(uint64_t tensor_id, const UsageLedger::Account& account, uint64_t byte_size);
  void ReleaseQuota(const UsageLedger::Account& account, uint64_t byte_size) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes a tensor out of the maps. Destroy the result without the lock: it may be the last pin.
  Tensor Extract(uint64_t tensor_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<const Tensor*> FindLocked(const Session& session, uint64_t tensor_id) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<TensorRecord> AddReference(const Session& session, uint64_t tensor_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool MayName(const Session& session, const Tensor& tensor);
  static TensorRecord RecordOf(const Tensor& tensor);

  WorkerPool& pool_;
  mutable absl::Mutex mutex_;
  absl::btree_map<uint64_t, Tensor> tensors_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<SharedName, uint64_t> shared_names_ ABSL_GUARDED_BY(mutex_);
  UsageLedger ledger_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_REGISTRY_H_
