// SPDX-License-Identifier: Apache-2.0
#include "server/region_registry.h"

#include "proto/job_ring.h"
#include "proto/shared_memory.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <utility>

namespace gemmd {
namespace {

// What kernels need of every operand's address; other regions begin at a page.
constexpr uint64_t kIpcAlignment = 16;
constexpr size_t kMaxSharedMemoryNameBytes = 255;  // NAME_MAX of tmpfs, as shm_open documents.

absl::Status CheckOwner(const Session& session) {
  if (session.anonymous()) return absl::UnauthenticatedError("region: regions need a session");
  if (session.closed()) return absl::UnauthenticatedError("session: it has ended");
  return absl::OkStatus();
}

absl::Status UnknownRegion() { return absl::NotFoundError("region: no such region in this session"); }

absl::Status CheckByteSize(uint64_t byte_size) {
  if (byte_size == 0) return absl::InvalidArgumentError("byte_size: expected at least 1, got 0");
  return absl::OkStatus();
}

// Whether the workers can map the memfd as asked: a seal or the mode of the descriptor may forbid it.
absl::Status CheckHostDescriptor(int fd, const RegionExtent& extent) {
  if (absl::Status status = CheckByteSize(extent.byte_size); !status.ok()) return status;
  if (fd < 0) return absl::InvalidArgumentError("descriptor: expected one sealed memfd, got none");
  if (absl::Status status = CheckSealedMemory(fd, extent.byte_size); !status.ok()) return status;
  const int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
  if (mode == O_WRONLY || (extent.writable && mode != O_RDWR)) {
    return absl::InvalidArgumentError("descriptor: expected one that is open for reading, and for writing if writable");
  }
  if (extent.writable && (fcntl(fd, F_GET_SEALS) & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) {
    return absl::InvalidArgumentError("descriptor: expected no seal against writing in a writable region");
  }
  return absl::OkStatus();
}

absl::Status CheckSharedMemoryName(absl::string_view name) {
  if (name.size() < 2 || name.size() > kMaxSharedMemoryNameBytes || name[0] != '/' ||
      name.find('/', 1) != absl::string_view::npos || name.find('\0') != absl::string_view::npos || name == "/." ||
      name == "/..") {
    return absl::InvalidArgumentError(
        absl::StrCat("name: expected \"/\" and 1 to ", kMaxSharedMemoryNameBytes - 1, " characters without \"/\""));
  }
  return absl::OkStatus();
}

// Opens the object if it belongs to `owner`. One text for every way of not being there.
absl::StatusOr<UniqueFd> OpenSharedMemory(absl::string_view name, const RegionExtent& extent, uid_t owner) {
  // O_NONBLOCK: a FIFO of that name would block the open until somebody writes to it.
  const int flags = (extent.writable ? O_RDWR : O_RDONLY) | O_NONBLOCK;
  UniqueFd fd(shm_open(std::string(name).c_str(), flags, 0));
  struct stat status {};
  if (!fd.valid() || fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != owner) {
    return absl::NotFoundError("name: no such shared memory of this user");
  }
  if (static_cast<uint64_t>(status.st_size) < extent.byte_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("byte_size: expected at most the object's ", status.st_size, " bytes, got ", extent.byte_size));
  }
  return fd;
}

absl::StatusOr<UniqueFd> OpenForSession(const Session& session, absl::string_view name, const RegionExtent& extent) {
  if (absl::Status status = CheckOwner(session); !status.ok()) return status;
  if (session.identity().remote) {
    return absl::PermissionDeniedError("session: shared memory needs a session from the broker of this machine");
  }
  if (absl::Status status = CheckByteSize(extent.byte_size); !status.ok()) return status;
  if (absl::Status status = CheckSharedMemoryName(name); !status.ok()) return status;
  return OpenSharedMemory(name, extent, session.identity().uid);
}

absl::Status UnknownGpu(absl::string_view gpu) {
  return absl::InvalidArgumentError(absl::StrCat(
      "gpu: expected the UUID of a GPU that gemmd serves (GetInfo lists them), got \"", absl::CHexEscape(gpu), "\""));
}

// Handles and descriptors of GPU memory are passed by processes of this machine.
absl::Status CheckLocalOwner(const Session& session) {
  if (absl::Status status = CheckOwner(session); !status.ok()) return status;
  if (!session.identity().remote) return absl::OkStatus();
  return absl::PermissionDeniedError("session: GPU memory needs a session from the broker of this machine");
}

absl::Status CheckIpcMemory(const IpcMemory& ipc, const RegionExtent& extent) {
  if (absl::Status status = CheckByteSize(extent.byte_size); !status.ok()) return status;
  if (ipc.reserved != 0) return absl::InvalidArgumentError("ipc.reserved: expected 0");
  if (ipc.allocation_bytes < kGpuGranule) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ipc.allocation_bytes: expected at least ", kGpuGranule, ", got ", ipc.allocation_bytes,
        "; cudaMalloc puts smaller allocations into one granule with others, and the handle would share them all. "
        "Allocate 2 MiB or more"));
  }
  if (ipc.offset % kIpcAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("ipc.offset: expected a multiple of ", kIpcAlignment, ", got ", ipc.offset));
  }
  if (ipc.offset > ipc.allocation_bytes || extent.byte_size > ipc.allocation_bytes - ipc.offset) {
    return absl::OutOfRangeError(absl::StrCat("byte_size: expected offset + byte_size of at most the allocation's ",
                                              ipc.allocation_bytes, " bytes, got ", ipc.offset, " + ",
                                              extent.byte_size));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t RegionCounts::regions() const {
  uint64_t sum = 0;
  for (const RegionKindCounts& kind : kinds) sum += kind.regions;
  return sum;
}

uint64_t RegionCounts::bytes() const {
  uint64_t sum = 0;
  for (const RegionKindCounts& kind : kinds) sum += kind.bytes;
  return sum;
}

std::shared_ptr<RegionRegistry> RegionRegistry::Create(const Quotas& quotas, WorkerPool& pool) {
  return std::shared_ptr<RegionRegistry>(new RegionRegistry(quotas, pool));
}

RegionRegistry::RegionRegistry(const Quotas& quotas, WorkerPool& pool)
    : pool_(pool),
      ledger_(UsageLedger::Limits{.noun = "regions",
                                  .count_per_session = quotas.regions_per_session,
                                  .bytes_per_session = quotas.region_bytes_per_session,
                                  .count_per_identity = quotas.regions_per_uid,
                                  .bytes_per_identity = quotas.region_bytes_per_uid}) {}

void RegionRegistry::RegisterHost(const std::shared_ptr<Session>& session, const RegionExtent& extent, UniqueFd fd,
                                  RegisterCallback done) {
  absl::Status status = CheckOwner(*session);
  if (status.ok()) status = CheckHostDescriptor(fd.get(), extent);
  if (!status.ok()) {
    CountRegistration(RegionKind::kHost, status);
    done(status);
    return;
  }
  Map(session, Request{RegionKind::kHost, extent, std::move(fd)}, std::move(done));
}

void RegionRegistry::RegisterSharedMemory(const std::shared_ptr<Session>& session, absl::string_view name,
                                          const RegionExtent& extent, RegisterCallback done) {
  absl::StatusOr<UniqueFd> fd = OpenForSession(*session, name, extent);
  if (!fd.ok()) {
    CountRegistration(RegionKind::kSharedMemory, fd.status());
    done(fd.status());
    return;
  }
  Map(session, Request{RegionKind::kSharedMemory, extent, *std::move(fd)}, std::move(done));
}

void RegionRegistry::RegisterDevice(const std::shared_ptr<Session>& session, const RegionExtent& extent,
                                    absl::string_view gpu, UniqueFd fd, RegisterCallback done) {
  absl::Status status = CheckLocalOwner(*session);
  if (status.ok()) status = CheckByteSize(extent.byte_size);
  if (status.ok() && !fd.valid()) {
    status = absl::InvalidArgumentError("descriptor: expected one of a CUDA allocation, got none");
  }
  RegisterGpuMemory(session, status, gpu, Request{RegionKind::kDevice, extent, std::move(fd)}, std::move(done));
}

void RegionRegistry::RegisterDeviceIpc(const std::shared_ptr<Session>& session, const RegionExtent& extent,
                                       absl::string_view gpu, const IpcMemory& ipc, RegisterCallback done) {
  absl::Status status = CheckLocalOwner(*session);
  if (status.ok()) status = CheckIpcMemory(ipc, extent);
  Request request{RegionKind::kDeviceIpc, extent};
  request.ipc = ipc;
  RegisterGpuMemory(session, status, gpu, std::move(request), std::move(done));
}

void RegionRegistry::RegisterGpuMemory(const std::shared_ptr<Session>& session, absl::Status status,
                                       absl::string_view gpu, Request request, RegisterCallback done) {
  if (status.ok()) {
    request.device = std::string(gpu);
    request.workers = gpu == kCpuDevice ? 0 : pool_.WorkersOn(gpu);
    if (request.workers == 0) status = UnknownGpu(gpu);
  }
  if (!status.ok()) {
    CountRegistration(request.kind, status);
    done(status);
    return;
  }
  Map(session, std::move(request), std::move(done));
}

void RegionRegistry::CreatePool(const std::shared_ptr<Session>& session, uint64_t byte_size, absl::string_view device,
                                PoolCallback done) {
  Request request{RegionKind::kPool, RegionExtent{byte_size, true}};
  absl::Status status = CheckLocalOwner(*session);
  if (status.ok()) status = CheckByteSize(byte_size);
  if (status.ok() && !device.empty()) {
    request.workers = pool_.WorkersOn(device);
    if (request.workers == 0) status = UnknownGpu(device);
  }
  const absl::StatusOr<uint64_t> region_id = status.ok() ? Reserve(*session, request) : status;
  if (!region_id.ok()) {
    CountRegistration(request.kind, region_id.status());
    done(region_id.status());
    return;
  }
  pool_.AllocatePool(*region_id, byte_size, request.workers,
                     [weak = weak_from_this(), id = *region_id, sent_ns = MonotonicNanos(),
                      done = std::move(done)](absl::StatusOr<PoolMemory> memory) {
                       const auto self = weak.lock();
                       if (self == nullptr) return done(absl::UnavailableError("shutting down"));
                       done(self->OnAllocated(id, std::move(memory), sent_ns));
                     });
}

absl::StatusOr<PoolRegion> RegionRegistry::OnAllocated(uint64_t region_id, absl::StatusOr<PoolMemory> memory,
                                                       uint64_t sent_ns) {
  if (memory.ok()) {
    absl::MutexLock lock(&mutex_);
    RegionView& view = regions_.at(region_id).view;
    view.device = memory->device;
    view.workers = memory->workers;
  }
  if (absl::Status status = OnMapped(region_id, memory.status(), sent_ns); !status.ok()) return status;
  return PoolRegion{region_id, std::move(memory->device), std::move(memory->fd)};
}

absl::StatusOr<uint64_t> RegionRegistry::Reserve(const Session& session, const Request& request) {
  const uint64_t region_id = pool_.NextRegionId();
  const UsageLedger::Account account{session.id(), session.identity()};
  absl::MutexLock lock(&mutex_);
  if (session.closed()) return absl::UnauthenticatedError("session: it has ended");
  if (absl::Status status = ledger_.Charge(account, request.extent.byte_size); !status.ok()) return status;
  Region region;
  region.view = RegionView{region_id,       request.kind,  request.extent.byte_size, request.extent.writable,
                           request.workers, request.device};
  region.account = account;
  region.registered_ns = MonotonicNanos();
  regions_.emplace(region_id, region);
  ++counts_.of(request.kind).regions;
  counts_.of(request.kind).bytes += request.extent.byte_size;
  return region_id;
}

void RegionRegistry::Map(const std::shared_ptr<Session>& session, Request request, RegisterCallback done) {
  const absl::StatusOr<uint64_t> region_id = Reserve(*session, request);
  if (!region_id.ok()) {
    CountRegistration(request.kind, region_id.status());
    done(region_id.status());
    return;
  }
  const RegionToMap region{request.kind, request.extent.writable ? Access::kReadWrite : Access::kReadOnly,
                           request.extent.byte_size, request.workers, request.ipc};
  pool_.MapRegion(*region_id, region, std::move(request.fd),
                  [weak = weak_from_this(), id = *region_id, sent_ns = MonotonicNanos(),
                   done = std::move(done)](const absl::Status& mapped) {
                    const auto self = weak.lock();
                    const absl::Status status =
                        self == nullptr ? absl::UnavailableError("shutting down") : self->OnMapped(id, mapped, sent_ns);
                    if (!status.ok()) {
                      done(status);
                      return;
                    }
                    done(id);
                  });
}

absl::Status RegionRegistry::OnMapped(uint64_t region_id, const absl::Status& status, uint64_t sent_ns) {
  const uint64_t import_ns = MonotonicNanos() - sent_ns;
  bool abandoned = false;
  RegionKind kind{};
  {
    absl::MutexLock lock(&mutex_);
    Region& region = regions_.at(region_id);
    kind = region.view.kind;
    if (status.ok()) Observe(counts_.of(kind).imports, import_ns);
    // The session may have ended meanwhile.
    abandoned = region.state == State::kClosing;
    if (status.ok() && !abandoned) region.state = State::kReady;
  }
  if (!status.ok()) Forget(region_id);
  if (status.ok() && abandoned) Unmap(region_id, [](const absl::Status&) {});
  absl::Status result = status.ok() && abandoned ? absl::UnauthenticatedError("session: it has ended") : status;
  CountRegistration(kind, result);
  return result;
}

void RegionRegistry::Close(const Session& session, uint64_t region_id, CloseCallback done) {
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    status = FindLocked(session, region_id).status();
    if (status.ok()) regions_.at(region_id).state = State::kClosing;
  }
  if (!status.ok()) {
    done(status);
    return;
  }
  Unmap(region_id, std::move(done));
}

void RegionRegistry::CloseAllOf(const Session& session) {
  std::vector<uint64_t> ready;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [region_id, region] : regions_) {
      if (region.account.session != session.id() || region.state == State::kClosing) continue;
      // One that is still mapping is closed by OnMapped.
      if (region.state == State::kReady) ready.push_back(region_id);
      region.state = State::kClosing;
      ++counts_.reaped_total;
    }
  }
  for (const uint64_t region_id : ready) Unmap(region_id, [](const absl::Status&) {});
}

void RegionRegistry::Unmap(uint64_t region_id, CloseCallback done) {
  pool_.CloseRegion(region_id,
                    [weak = weak_from_this(), region_id, done = std::move(done)](const absl::Status& status) {
                      if (const auto self = weak.lock()) self->Forget(region_id);
                      done(status);
                    });
}

void RegionRegistry::Forget(uint64_t region_id) {
  absl::MutexLock lock(&mutex_);
  const auto found = regions_.find(region_id);
  const RegionView& view = found->second.view;
  --counts_.of(view.kind).regions;
  counts_.of(view.kind).bytes -= view.byte_size;
  ledger_.Release(found->second.account, view.byte_size);
  regions_.erase(found);
}

absl::StatusOr<RegionView> RegionRegistry::Find(const Session& session, uint64_t region_id) const {
  absl::ReaderMutexLock lock(&mutex_);
  return FindLocked(session, region_id);
}

absl::StatusOr<RegionView> RegionRegistry::FindLocked(const Session& session, uint64_t region_id) const {
  if (session.anonymous()) return absl::UnauthenticatedError("region: regions need a session");
  const auto found = regions_.find(region_id);
  if (found == regions_.end() || found->second.account.session != session.id() ||
      found->second.state == State::kMapping) {
    return UnknownRegion();
  }
  if (found->second.state == State::kClosing) return absl::FailedPreconditionError("region: it is being closed");
  return found->second.view;
}

std::vector<RegionView> RegionRegistry::List(const Session& session) const {
  std::vector<RegionView> views;
  {
    absl::ReaderMutexLock lock(&mutex_);
    for (const auto& [region_id, region] : regions_) {
      if (region.account.session == session.id() && region.state == State::kReady) views.push_back(region.view);
    }
  }
  std::sort(views.begin(), views.end(),
            [](const RegionView& left, const RegionView& right) { return left.region_id < right.region_id; });
  return views;
}

std::vector<RegionSnapshot> RegionRegistry::Snapshot(size_t limit) const {
  static constexpr absl::string_view kStates[] = {"mapping", "ready", "closing"};
  const uint64_t now_ns = MonotonicNanos();
  std::vector<RegionSnapshot> regions;
  {
    absl::ReaderMutexLock lock(&mutex_);
    regions.reserve(regions_.size());
    for (const auto& [region_id, region] : regions_) {
      regions.push_back({region.account.session, region.view, kStates[static_cast<size_t>(region.state)],
                         now_ns - std::min(now_ns, region.registered_ns)});
    }
  }
  std::sort(regions.begin(), regions.end(), [](const RegionSnapshot& left, const RegionSnapshot& right) {
    return left.view.region_id < right.view.region_id;
  });
  if (regions.size() > limit) regions.resize(limit);
  return regions;
}

void RegionRegistry::CountRegistration(RegionKind kind, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  ++counts_.of(kind).registrations_total[static_cast<size_t>(status.code())];
}

RegionCounts RegionRegistry::Counts() const {
  absl::ReaderMutexLock lock(&mutex_);
  return counts_;
}

}  // namespace gemmd
