// SPDX-License-Identifier: Apache-2.0
// The pool's table of memory: regions and tensors that every worker, or the one where they live, must have.
#include "server/fanout.h"
#include "server/process_worker_pool.h"

#include <utility>

namespace gemmd {
namespace {

ControlRequest CloseRequest(uint64_t region_id) {
  ControlRequest request;
  request.type = ControlRequestType::kCloseRegion;
  request.region_id = region_id;
  return request;
}

ControlRequest MapRequest(uint64_t region_id, const RegionToMap& region) {
  ControlRequest request;
  request.type = ControlRequestType::kMapRegion;
  request.region_id = region_id;
  request.region_kind = region.kind;
  request.access = region.access;
  request.byte_size = region.byte_size;
  request.ipc = region.ipc;
  return request;
}

// Memory that workers allocated; what clients brought takes no room that the daemon could give away.
bool IsAllocated(RegionKind kind) { return kind == RegionKind::kTensor || kind == RegionKind::kPool; }

}  // namespace

bool ProcessWorkerPool::SendDifference(int worker) {
  Slot& slot = this->slot(worker);
  const uint32_t generation = slot.generation;
  const auto answer = [this, worker, generation](absl::StatusOr<ControlResult> result) {
    OnReconciled(worker, generation, result.status());
  };
  uint32_t sent = 0;
  for (const auto& [id, region] : regions_) {
    if (!Contains(region.workers, worker) || !slot.mapped.insert(id).second) continue;
    if (slot.link->Control(MapRequest(id, region), region.fd, answer).ok()) ++sent;
  }
  std::vector<uint64_t> closed;
  for (uint64_t id : slot.mapped) {
    if (regions_.find(id) == regions_.end()) closed.push_back(id);
  }
  for (uint64_t id : closed) {
    slot.mapped.erase(id);
    if (slot.link->Control(CloseRequest(id), nullptr, answer).ok()) ++sent;
  }
  slot.reconciling = sent;
  return sent > 0;
}

WorkerMask ProcessWorkerPool::WorkersOn(absl::string_view device) const {
  absl::ReaderMutexLock lock(&mutex_);
  return WorkersOnLocked(device);
}

WorkerMask ProcessWorkerPool::WorkersOnLocked(absl::string_view device) const {
  WorkerMask workers = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].traits.device == device) workers |= MaskOf(static_cast<int>(i));
  }
  return workers;
}

// To those of `workers` that are ready; the others get it from the table.
void ProcessWorkerPool::SendRegion(uint64_t region_id, const Region& region, WorkerMask workers,
                                   const std::shared_ptr<Fanout>& fanout) {
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (!Contains(workers, static_cast<int>(i)) || slot.state != WorkerState::kReady) continue;
    slot.mapped.insert(region_id);
    fanout->Expect();
    // A link that just died answers nothing, and its successor starts from the table.
    const auto answer = [fanout](absl::StatusOr<ControlResult> result) { fanout->Answer(result); };
    if (!slot.link->Control(MapRequest(region_id, region), region.fd, answer).ok()) fanout->Unexpect();
  }
}

void ProcessWorkerPool::MapRegion(uint64_t region_id, const RegionToMap& region, UniqueFd fd, StatusCallback done) {
  auto fanout = std::make_shared<Fanout>(
      [this, region_id, done = std::move(done)](const absl::Status& status, const ControlReply&) {
        if (status.ok()) return done(status);
        CloseRegion(region_id, [done, status](const absl::Status&) { done(status); });
      });
  {
    absl::MutexLock lock(&mutex_);
    Region kept{region, nullptr};
    if (fd.valid()) kept.fd = std::make_shared<const UniqueFd>(std::move(fd));
    regions_.emplace(region_id, kept);
    SendRegion(region_id, kept, region.workers, fanout);
  }
  fanout->AllSent();
}

void ProcessWorkerPool::CloseRegion(uint64_t region_id, StatusCallback done) {
  auto fanout = std::make_shared<Fanout>(
      [done = std::move(done)](const absl::Status& status, const ControlReply&) { done(status); });
  {
    absl::MutexLock lock(&mutex_);
    regions_.erase(region_id);
    for (Slot& slot : slots_) {
      if (slot.state != WorkerState::kReady || slot.mapped.erase(region_id) == 0) continue;
      fanout->Expect();
      const auto answer = [fanout](absl::StatusOr<ControlResult> result) { fanout->Answer(result); };
      if (!slot.link->Control(CloseRequest(region_id), nullptr, answer).ok()) fanout->Unexpect();
    }
  }
  fanout->AllSent();
}

int ProcessWorkerPool::RoomiestWorker(WorkerMask workers) const {
  // Workers on one device share its memory.
  std::vector<uint64_t> used(slots_.size());
  for (const auto& [id, region] : regions_) {
    if (!IsAllocated(region.kind)) continue;
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (Contains(region.workers, static_cast<int>(i))) used[i] += region.byte_size;
    }
  }
  int best = kAnyWorker;
  double best_room = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (!Contains(workers, static_cast<int>(i)) || slots_[i].state != WorkerState::kReady) continue;
    const double room = static_cast<double>(slots_[i].traits.memory_bytes) - static_cast<double>(used[i]);
    if (best != kAnyWorker && room <= best_room) continue;
    best = static_cast<int>(i);
    best_room = room;
  }
  return best;
}

// In the roomiest of memory.workers.
void ProcessWorkerPool::Allocate(uint64_t region_id, const RegionToMap& memory, const AllocateCallback& done) {
  ControlRequest request;
  request.type = ControlRequestType::kAllocate;
  request.region_id = region_id;
  request.byte_size = memory.byte_size;
  absl::Status status = absl::UnavailableError("no ready worker");
  {
    absl::MutexLock lock(&mutex_);
    const int worker = RoomiestWorker(memory.workers);
    if (worker != kAnyWorker) {
      status = slot(worker).link->Control(
          request, nullptr, [this, region_id, memory, worker, done](absl::StatusOr<ControlResult> result) {
            done(OnAllocated(region_id, worker, memory, std::move(result)));
          });
    }
  }
  if (!status.ok()) done(status);
}

absl::StatusOr<int> ProcessWorkerPool::OnAllocated(uint64_t region_id, int worker, const RegionToMap& memory,
                                                   absl::StatusOr<ControlResult> result) {
  if (!result.ok()) return result.status();
  if (!result->fd.valid()) return absl::InternalError("the worker gave no descriptor for the memory");
  absl::MutexLock lock(&mutex_);
  // A link delivers its replies before its death, and the next process starts after that, so this is still the process
  // that has the memory, or none is and the next one gets it from the table.
  slot(worker).mapped.insert(region_id);
  Region region{memory, std::make_shared<const UniqueFd>(std::move(result->fd))};
  region.workers = MaskOf(worker);
  regions_.emplace(region_id, std::move(region));
  return worker;
}

void ProcessWorkerPool::AllocateTensor(uint64_t region_id, uint64_t byte_size, int worker, AllocateCallback done) {
  Allocate(region_id, {RegionKind::kTensor, Access::kReadWrite, byte_size, MaskOf(worker)}, done);
}

void ProcessWorkerPool::AllocatePool(uint64_t region_id, uint64_t byte_size, WorkerMask workers, PoolCallback done) {
  Allocate(region_id, {RegionKind::kPool, Access::kReadWrite, byte_size, workers},
           [this, region_id, done = std::move(done)](const absl::StatusOr<int>& worker) {
             if (!worker.ok()) return done(worker.status());
             SharePool(region_id, *worker, done);
           });
}

// Gives a pool that `worker` allocated to the other workers on its device, and to the caller.
void ProcessWorkerPool::SharePool(uint64_t region_id, int worker, PoolCallback done) {
  auto memory = std::make_shared<PoolMemory>();
  auto fanout = std::make_shared<Fanout>(
      [this, region_id, memory, done = std::move(done)](const absl::Status& status, const ControlReply&) {
        if (status.ok()) return done(std::move(*memory));
        CloseRegion(region_id, [done, status](const absl::Status&) { done(status); });
      });
  {
    absl::MutexLock lock(&mutex_);
    // Nobody knows the id yet, so nobody can have closed it.
    Region& region = regions_.at(region_id);
    memory->device = slot(worker).traits.device;
    memory->workers = WorkersOnLocked(memory->device);
    memory->fd = region.fd->Duplicate();
    region.workers = memory->workers;
    SendRegion(region_id, region, memory->workers & ~MaskOf(worker), fanout);
    if (!memory->fd.valid()) {
      fanout->Expect();
      fanout->Answer(absl::ResourceExhaustedError("no descriptor is free"));
    }
  }
  fanout->AllSent();
}

}  // namespace gemmd
