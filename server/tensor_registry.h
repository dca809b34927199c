// SPDX-License-Identifier: Apache-2.0
// Resident tensors: which there are, whose they are, and in which worker they live. A private tensor ends with its
// session; a shared one is found by name by all sessions of one user and stays until it is deleted; those of the
// daemon's manifest are found by everybody, sessions or not, stay, and cannot be written to.
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

// Who owns the tensors of the manifest: the number that no user has.
inline constexpr Identity kDaemonIdentity{.remote = false, .uid = static_cast<uid_t>(-1)};

class PinnedTensor;  // Defined in the source: keeps the memory of one tensor.

// What a request needs to use a tensor. Keep the view until the last job that names the tensor is done.
struct TensorView {
  uint64_t region_id = 0;  // Also the tensor's id.
  DType dtype = DType::kNone;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};  // Contiguous, row-major.
  uint64_t byte_size = 0;
  int worker = kAnyWorker;  // Index of the worker where it lives.
  bool read_only = false;   // No output, and no target of a write.
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
  uint64_t sf_id = 0;  // The tensor of its scale factors, if they were made together.
  bool read_only = false;
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
  bool everybody = false;  // Of the manifest; also shared. By a session of kDaemonIdentity only.
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
  using ReserveCallback = std::function<void(absl::StatusOr<TensorView>)>;

  // `pool` must outlive the registry.
  static std::shared_ptr<TensorRegistry> Create(const Quotas& quotas, WorkerPool& pool);

  // Allocates a tensor, filled with zeros; the session holds a reference to it.
  // Errors: INVALID_ARGUMENT (dtype, shape, name), ALREADY_EXISTS (shared name), RESOURCE_EXHAUSTED (quota, memory),
  // UNAUTHENTICATED (anonymous or ended session), UNAVAILABLE (no ready worker).
  void CreateTensor(const std::shared_ptr<Session>& session, TensorSpec spec, CreateCallback done);

  // The same in two steps, for a tensor that is filled in between: until Publish, its name and quota are taken, but
  // nobody can name it. `worker`: where it is to live, or kAnyWorker. Errors: as CreateTensor.
  void Reserve(const std::shared_ptr<Session>& session, TensorSpec spec, int worker, ReserveCallback done);

  // Makes a reserved tensor known and, with it, the reserved tensor of its scale factors (0: none). After an error both
  // are gone. Errors: UNAUTHENTICATED (the session has ended meanwhile).
  absl::StatusOr<TensorRecord> Publish(uint64_t tensor_id, uint64_t sf_id);

  // Gives up a reserved tensor; it is freed when its last view is gone.
  void Discard(uint64_t tensor_id);

  // Pins a tensor that the session may name: its own, a shared one of its user, or one of the manifest.
  // Errors: NOT_FOUND (one text for unknown, foreign and deleted), UNAUTHENTICATED (anonymous).
  absl::StatusOr<TensorView> Find(const Session& session, uint64_t tensor_id) const;
  // The same by shared name.
  absl::StatusOr<TensorView> FindByName(const Session& session, absl::string_view name) const;

  // The same for one that is to be written to. Errors: also PERMISSION_DENIED (read-only).
  absl::StatusOr<TensorView> FindWritable(const Session& session, uint64_t tensor_id) const;

  // Looks a tensor up by id or shared name and adds a reference of the session to it. Errors: as Find.
  absl::StatusOr<TensorRecord> Get(const Session& session, uint64_t tensor_id);
  absl::StatusOr<TensorRecord> GetByName(const Session& session, absl::string_view name);

  // The tensors that the session can name, by id.
  std::vector<TensorRecord> List(const Session& session) const;

  // Removes a tensor and the scale factors made with it; its name is free at once. Errors: as FindWritable.
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
    uint64_t sf_id = 0;    // As in TensorRecord.
    uint64_t creator = 0;  // Session id.
    Identity identity;     // Of its creator.
    UsageLedger::Account account;
    absl::flat_hash_set<uint64_t> references;  // Session ids.
    bool ready = false;                        // Published; before that nobody can name it.
    uint64_t created_ns = 0;                   // CLOCK_MONOTONIC.
    bool abandoned = false;                    // Its session ended before.
  };
  using SharedName = std::pair<Identity, std::string>;

  TensorRegistry(const Quotas& quotas, WorkerPool& pool);

  absl::Status Add(const Session& session, const TensorSpec& spec, const TensorView& view);
  absl::StatusOr<TensorView> OnAllocated(uint64_t tensor_id, const absl::StatusOr<int>& worker);
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
  uint64_t IdOf(const Session& session, absl::string_view name) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  TensorRecord RecordOf(const Tensor& tensor) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  WorkerPool& pool_;
  mutable absl::Mutex mutex_;
  absl::btree_map<uint64_t, Tensor> tensors_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<SharedName, uint64_t> shared_names_ ABSL_GUARDED_BY(mutex_);
  UsageLedger ledger_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_REGISTRY_H_
