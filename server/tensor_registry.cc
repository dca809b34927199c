// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_registry.h"

#include "proto/job_ring.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>

namespace gemmd {

// Frees the tensor's memory when the last view is gone. Its registry may be gone first: then the daemon is ending, and
// the workers with it.
class PinnedTensor {
 public:
  PinnedTensor(std::weak_ptr<TensorRegistry> registry, uint64_t tensor_id, UsageLedger::Account account,
               uint64_t byte_size)
      : registry_(std::move(registry)), tensor_id_(tensor_id), account_(account), byte_size_(byte_size) {}
  PinnedTensor(const PinnedTensor&) = delete;
  PinnedTensor& operator=(const PinnedTensor&) = delete;
  ~PinnedTensor() {
    if (!allocated_) return;
    if (const auto registry = registry_.lock()) registry->FreeMemory(tensor_id_, account_, byte_size_);
  }

  void MarkAllocated() { allocated_ = true; }
  std::atomic<uint64_t>& bytes_written() { return bytes_written_; }

 private:
  const std::weak_ptr<TensorRegistry> registry_;
  const uint64_t tensor_id_;
  const UsageLedger::Account account_;
  const uint64_t byte_size_;
  std::atomic<bool> allocated_{false};
  std::atomic<uint64_t> bytes_written_{0};
};

namespace {

absl::Status NeedsSession() { return absl::UnauthenticatedError("tensor: resident tensors need a session"); }
absl::Status Ended() { return absl::UnauthenticatedError("session: it has ended"); }
absl::Status ReadOnly() {
  return absl::PermissionDeniedError("tensor: expected one that may be written, got one of the daemon's manifest");
}
absl::Status UnknownTensor() { return absl::NotFoundError("tensor: no such tensor for this session"); }

absl::Status CheckName(const TensorSpec& spec) {
  if (spec.name.size() > kMaxTensorNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("name: expected at most ", kMaxTensorNameBytes, " characters, got ", spec.name.size()));
  }
  if (spec.shared && spec.name.empty()) {
    return absl::InvalidArgumentError("name: expected one for a shared tensor, got none");
  }
  const auto printable = [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); };
  if (!std::all_of(spec.name.begin(), spec.name.end(), printable)) {
    return absl::InvalidArgumentError("name: expected printable ASCII characters");
  }
  return absl::OkStatus();
}

// Bytes of a contiguous tensor, at most 2^63 - 1: the largest size that a file can have.
absl::StatusOr<uint64_t> ByteSizeOf(const TensorSpec& spec) {
  const int64_t element = ByteSize(spec.dtype);
  if (element == 0) {
    return absl::InvalidArgumentError(absl::StrCat("dtype: expected a known type, got ", static_cast<int>(spec.dtype)));
  }
  if (spec.shape.empty() || spec.shape.size() > kMaxRank) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape: expected rank 1 to ", kMaxRank, ", got ", spec.shape.size()));
  }
  unsigned __int128 byte_size = static_cast<unsigned __int128>(element);
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    if (spec.shape[i] < 1) {
      return absl::InvalidArgumentError(absl::StrCat("shape[", i, "]: expected at least 1, got ", spec.shape[i]));
    }
    // Both factors are below 2^63, so the product cannot overflow before the check.
    byte_size *= static_cast<unsigned __int128>(spec.shape[i]);
    if (byte_size > static_cast<unsigned __int128>(std::numeric_limits<int64_t>::max())) {
      return absl::InvalidArgumentError("shape: expected less than 2^63 bytes in all");
    }
  }
  return static_cast<uint64_t>(byte_size);
}

absl::StatusOr<uint64_t> CheckSpec(const Session& session, const TensorSpec& spec) {
  if (session.anonymous()) return NeedsSession();
  if (absl::Status status = CheckName(spec); !status.ok()) return status;
  return ByteSizeOf(spec);
}

UsageLedger::Account AccountOf(const Session& session, bool shared) {
  // A shared tensor outlives its session, so its user alone pays.
  return UsageLedger::Account{shared ? 0 : session.id(), session.identity()};
}

}  // namespace

std::shared_ptr<TensorRegistry> TensorRegistry::Create(const Quotas& quotas, WorkerPool& pool) {
  return std::shared_ptr<TensorRegistry>(new TensorRegistry(quotas, pool));
}

TensorRegistry::TensorRegistry(const Quotas& quotas, WorkerPool& pool)
    : pool_(pool),
      ledger_(UsageLedger::Limits{.noun = "tensors",
                                  .count_per_session = quotas.tensors_per_session,
                                  .bytes_per_session = quotas.tensor_bytes_per_session,
                                  .count_per_identity = quotas.tensors_per_uid,
                                  .bytes_per_identity = quotas.tensor_bytes_per_uid}) {}

void TensorRegistry::CreateTensor(const std::shared_ptr<Session>& session, TensorSpec spec, CreateCallback done) {
  Reserve(session, std::move(spec), kAnyWorker,
          [weak = weak_from_this(), done = std::move(done)](absl::StatusOr<TensorView> view) {
            if (!view.ok()) {
              done(view.status());
              return;
            }
            view->pin.reset();  // Nobody uses the tensor when the answer is there.
            const auto self = weak.lock();
            done(self != nullptr ? self->Publish(view->region_id, 0) : absl::UnavailableError("shutting down"));
          });
}

void TensorRegistry::Reserve(const std::shared_ptr<Session>& session, TensorSpec spec, int worker,
                             ReserveCallback done) {
  const absl::StatusOr<uint64_t> byte_size = CheckSpec(*session, spec);
  if (!byte_size.ok()) {
    done(byte_size.status());
    return;
  }
  TensorView view;
  view.region_id = pool_.NextRegionId();
  view.dtype = spec.dtype;
  view.rank = static_cast<int>(spec.shape.size());
  std::copy(spec.shape.begin(), spec.shape.end(), view.shape.begin());
  view.byte_size = *byte_size;
  view.read_only = spec.everybody;
  view.pin =
      std::make_shared<PinnedTensor>(weak_from_this(), view.region_id, AccountOf(*session, spec.shared), *byte_size);
  if (absl::Status status = Add(*session, spec, view); !status.ok()) {
    done(status);
    return;
  }
  const uint64_t id = view.region_id;
  view.pin.reset();  // The registry has its own; the last pin must not end here.
  pool_.AllocateTensor(id, *byte_size, worker,
                       [weak = weak_from_this(), id, done = std::move(done)](const absl::StatusOr<int>& allocated) {
                         const auto self = weak.lock();
                         if (self == nullptr) {
                           done(absl::UnavailableError("shutting down"));
                           return;
                         }
                         done(self->OnAllocated(id, allocated));
                       });
}

absl::Status TensorRegistry::Add(const Session& session, const TensorSpec& spec, const TensorView& view) {
  absl::MutexLock lock(&mutex_);
  if (session.closed()) return Ended();
  const SharedName key(session.identity(), spec.name);
  const bool of_manifest = shared_names_.contains(SharedName(kDaemonIdentity, spec.name));
  if (spec.shared && (of_manifest || shared_names_.contains(key))) {
    return absl::AlreadyExistsError("name: a shared tensor of this name exists");
  }
  Tensor tensor;
  tensor.view = view;
  tensor.name = spec.name;
  tensor.shared = spec.shared;
  tensor.creator = session.id();
  tensor.created_ns = MonotonicNanos();
  tensor.identity = session.identity();
  tensor.account = AccountOf(session, spec.shared);
  tensor.references.insert(session.id());
  if (absl::Status status = ledger_.Charge(tensor.account, view.byte_size); !status.ok()) return status;
  bytes_ += view.byte_size;
  if (spec.shared) shared_names_.emplace(key, view.region_id);
  tensors_.emplace(view.region_id, std::move(tensor));
  return absl::OkStatus();
}

absl::StatusOr<TensorView> TensorRegistry::OnAllocated(uint64_t tensor_id, const absl::StatusOr<int>& worker) {
  std::optional<Tensor> dropped;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  Tensor& tensor = tensors_.at(tensor_id);
  if (!worker.ok()) {
    ReleaseQuota(tensor.account, tensor.view.byte_size);
    dropped = Extract(tensor_id);
    return worker.status();
  }
  tensor.view.pin->MarkAllocated();
  tensor.view.worker = *worker;
  if (tensor.abandoned) {
    dropped = Extract(tensor_id);
    return Ended();
  }
  return tensor.view;
}

absl::StatusOr<TensorRecord> TensorRegistry::Publish(uint64_t tensor_id, uint64_t sf_id) {
  std::vector<Tensor> dropped;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  std::vector<uint64_t> ids = {tensor_id};
  if (sf_id != 0) ids.push_back(sf_id);
  const bool abandoned = std::any_of(ids.begin(), ids.end(), [&](uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return tensors_.at(id).abandoned;
  });
  for (const uint64_t id : ids) {
    if (abandoned) dropped.push_back(Extract(id));
    if (!abandoned) tensors_.at(id).ready = true;
  }
  if (abandoned) return Ended();
  Tensor& tensor = tensors_.at(tensor_id);
  tensor.sf_id = sf_id;
  return RecordOf(tensor);
}

void TensorRegistry::Discard(uint64_t tensor_id) {
  std::optional<Tensor> dropped;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  if (tensors_.contains(tensor_id)) dropped = Extract(tensor_id);
}

void TensorRegistry::FreeMemory(uint64_t tensor_id, const UsageLedger::Account& account, uint64_t byte_size) {
  pool_.CloseRegion(tensor_id, [weak = weak_from_this(), account, byte_size](const absl::Status&) {
    const auto self = weak.lock();
    if (self == nullptr) return;
    absl::MutexLock lock(&self->mutex_);
    self->ReleaseQuota(account, byte_size);
  });
}

void TensorRegistry::ReleaseQuota(const UsageLedger::Account& account, uint64_t byte_size) {
  ledger_.Release(account, byte_size);
  bytes_ -= byte_size;
}

TensorRegistry::Tensor TensorRegistry::Extract(uint64_t tensor_id) {
  const auto found = tensors_.find(tensor_id);
  Tensor tensor = std::move(found->second);
  tensors_.erase(found);
  if (tensor.shared) shared_names_.erase(SharedName(tensor.identity, tensor.name));
  return tensor;
}

bool TensorRegistry::MayName(const Session& session, const Tensor& tensor) {
  if (!tensor.ready) return false;
  if (tensor.view.read_only) return true;
  if (session.anonymous()) return false;
  return tensor.shared ? tensor.identity == session.identity() : tensor.creator == session.id();
}

absl::StatusOr<const TensorRegistry::Tensor*> TensorRegistry::FindLocked(const Session& session,
                                                                         uint64_t tensor_id) const {
  const auto found = tensors_.find(tensor_id);
  if (found != tensors_.end() && MayName(session, found->second)) return &found->second;
  return session.anonymous() ? NeedsSession() : UnknownTensor();
}

uint64_t TensorRegistry::IdOf(const Session& session, absl::string_view name) const {
  for (const Identity& identity : {session.identity(), kDaemonIdentity}) {
    const auto found = shared_names_.find(SharedName(identity, std::string(name)));
    if (found != shared_names_.end()) return found->second;
  }
  return 0;  // No tensor has this id.
}

absl::StatusOr<TensorView> TensorRegistry::FindByName(const Session& session, absl::string_view name) const {
  absl::ReaderMutexLock lock(&mutex_);
  const absl::StatusOr<const Tensor*> tensor = FindLocked(session, IdOf(session, name));
  if (!tensor.ok()) return tensor.status();
  return (*tensor)->view;
}

absl::StatusOr<TensorView> TensorRegistry::FindWritable(const Session& session, uint64_t tensor_id) const {
  absl::StatusOr<TensorView> view = Find(session, tensor_id);
  if (view.ok() && view->read_only) return ReadOnly();
  return view;
}

absl::StatusOr<TensorView> TensorRegistry::Find(const Session& session, uint64_t tensor_id) const {
  absl::ReaderMutexLock lock(&mutex_);
  const absl::StatusOr<const Tensor*> tensor = FindLocked(session, tensor_id);
  if (!tensor.ok()) return tensor.status();
  return (*tensor)->view;
}

absl::StatusOr<TensorRecord> TensorRegistry::AddReference(const Session& session, uint64_t tensor_id) {
  if (session.closed()) return Ended();
  if (absl::Status status = FindLocked(session, tensor_id).status(); !status.ok()) return status;
  Tensor& tensor = tensors_.at(tensor_id);
  tensor.references.insert(session.id());
  return RecordOf(tensor);
}

absl::StatusOr<TensorRecord> TensorRegistry::Get(const Session& session, uint64_t tensor_id) {
  absl::MutexLock lock(&mutex_);
  return AddReference(session, tensor_id);
}

absl::StatusOr<TensorRecord> TensorRegistry::GetByName(const Session& session, absl::string_view name) {
  absl::MutexLock lock(&mutex_);
  return AddReference(session, IdOf(session, name));
}

std::vector<TensorRecord> TensorRegistry::List(const Session& session) const {
  std::vector<TensorRecord> records;
  absl::ReaderMutexLock lock(&mutex_);
  if (session.anonymous()) return records;
  for (const auto& [tensor_id, tensor] : tensors_) {
    if (MayName(session, tensor)) records.push_back(RecordOf(tensor));
  }
  return records;
}

absl::Status TensorRegistry::Delete(const Session& session, uint64_t tensor_id) {
  std::vector<Tensor> dropped;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  const absl::StatusOr<const Tensor*> tensor = FindLocked(session, tensor_id);
  if (!tensor.ok()) return tensor.status();
  if ((*tensor)->view.read_only) return ReadOnly();
  const uint64_t sf_id = (*tensor)->sf_id;
  dropped.push_back(Extract(tensor_id));
  if (tensors_.contains(sf_id)) dropped.push_back(Extract(sf_id));
  return absl::OkStatus();
}

void TensorRegistry::CloseAllOf(const Session& session) {
  std::vector<Tensor> dropped;  // Destroyed after the lock is released.
  absl::MutexLock lock(&mutex_);
  std::vector<uint64_t> ended;
  for (auto& [tensor_id, tensor] : tensors_) {
    tensor.references.erase(session.id());
    if (tensor.shared || tensor.creator != session.id()) continue;
    // One that is still being allocated or filled is dropped by whoever does that.
    tensor.abandoned = true;
    if (tensor.ready) ended.push_back(tensor_id);
  }
  dropped.reserve(ended.size());
  for (const uint64_t tensor_id : ended) dropped.push_back(Extract(tensor_id));
}

void TensorRegistry::AddBytesWritten(const TensorView& view, uint64_t byte_size) {
  view.pin->bytes_written().fetch_add(byte_size, std::memory_order_relaxed);
}

TensorRecord TensorRegistry::RecordOf(const Tensor& tensor) const {
  TensorRecord record;
  record.id = tensor.view.region_id;
  record.name = tensor.name;
  record.shared = tensor.shared;
  record.dtype = tensor.view.dtype;
  record.shape.assign(tensor.view.shape.begin(), tensor.view.shape.begin() + tensor.view.rank);
  record.byte_size = tensor.view.byte_size;
  record.bytes_written = tensor.view.pin->bytes_written().load(std::memory_order_relaxed);
  record.references = static_cast<uint32_t>(tensor.references.size());
  record.worker = tensor.view.worker;
  record.read_only = tensor.view.read_only;
  record.sf_id = tensors_.contains(tensor.sf_id) ? tensor.sf_id : 0;
  return record;
}

std::vector<TensorSnapshot> TensorRegistry::Snapshot(size_t limit) const {
  const uint64_t now_ns = MonotonicNanos();
  std::vector<TensorSnapshot> tensors;
  absl::ReaderMutexLock lock(&mutex_);
  for (const auto& [tensor_id, tensor] : tensors_) {
    if (tensors.size() == limit) break;
    tensors.push_back({.id = tensor_id,
                       .session = tensor.creator,
                       .shared = tensor.shared,
                       .dtype = tensor.view.dtype,
                       .byte_size = tensor.view.byte_size,
                       .references = static_cast<uint32_t>(tensor.references.size()),
                       .pins = tensor.view.pin.use_count() - 1,  // One is the registry's own.
                       .worker = tensor.view.worker,
                       .age_ns = now_ns - std::min(now_ns, tensor.created_ns)});
  }
  return tensors;
}

TensorCounts TensorRegistry::Counts() const {
  absl::ReaderMutexLock lock(&mutex_);
  TensorCounts counts;
  for (const auto& [tensor_id, tensor] : tensors_) ++(tensor.shared ? counts.shared_tensors : counts.private_tensors);
  counts.bytes = bytes_;
  return counts;
}

}  // namespace gemmd
