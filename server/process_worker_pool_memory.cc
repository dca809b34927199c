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

}  // namespace

bool ProcessWorkerPool::SendDifference(int worker) {
  Slot& slot = this->slot(worker);
  const uint32_t generation = slot.generation;
  const auto answer = [this, worker, generation](absl::StatusOr<ControlResult> result) {
    OnReconciled(worker, generation, result.status());
  };
  uint32_t sent = 0;
  for (const auto& [id, region] : regions_) {
    if (region.worker != kAnyWorker && region.worker != worker) continue;
    if (!slot.mapped.insert(id).second) continue;
    ControlRequest request;
    request.type = ControlRequestType::kMapRegion;
    request.region_id = id;
    request.region_kind = region.kind;
    request.access = region.access;
    request.byte_size = region.byte_size;
    if (slot.link->Control(request, region.fd, answer).ok()) ++sent;
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

void ProcessWorkerPool::MapRegion(uint64_t region_id, RegionKind kind, Access access, uint64_t byte_size, UniqueFd fd,
                                  StatusCallback done) {
  auto fanout = std::make_shared<Fanout>(
      [this, region_id, done = std::move(done)](const absl::Status& status, const ControlReply&) {
        if (status.ok()) return done(status);
        CloseRegion(region_id, [done, status](const absl::Status&) { done(status); });
      });
  {
    absl::MutexLock lock(&mutex_);
    const Region region{kind, access, byte_size, std::make_shared<const UniqueFd>(std::move(fd)), kAnyWorker};
    regions_.emplace(region_id, region);
    ControlRequest request;
    request.type = ControlRequestType::kMapRegion;
    request.region_id = region_id;
    request.region_kind = kind;
    request.access = access;
    request.byte_size = byte_size;
    for (Slot& slot : slots_) {
      if (slot.state != WorkerState::kReady) continue;
      slot.mapped.insert(region_id);
      fanout->Expect();
      // A link that just died answers nothing, and its successor starts from the table.
      const auto answer = [fanout](absl::StatusOr<ControlResult> result) { fanout->Answer(result); };
      if (!slot.link->Control(request, region.fd, answer).ok()) fanout->Unexpect();
    }
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

int ProcessWorkerPool::RoomiestWorker() const {
  std::vector<uint64_t> used(slots_.size());
  for (const auto& [id, region] : regions_) {
    if (region.worker != kAnyWorker) used[static_cast<size_t>(region.worker)] += region.byte_size;
  }
  int best = kAnyWorker;
  double best_room = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].state != WorkerState::kReady) continue;
    const double room = static_cast<double>(slots_[i].traits.memory_bytes) - static_cast<double>(used[i]);
    if (best != kAnyWorker && room <= best_room) continue;
    best = static_cast<int>(i);
    best_room = room;
  }
  return best;
}

void ProcessWorkerPool::AllocateTensor(uint64_t region_id, uint64_t byte_size, int worker, AllocateCallback done) {
  ControlRequest request;
  request.type = ControlRequestType::kAllocate;
  request.region_id = region_id;
  request.byte_size = byte_size;
  absl::Status status = absl::UnavailableError("no ready worker");
  {
    absl::MutexLock lock(&mutex_);
    if (worker == kAnyWorker) worker = RoomiestWorker();
    if (worker != kAnyWorker && slot(worker).state == WorkerState::kReady) {
      status = slot(worker).link->Control(
          request, nullptr, [this, region_id, byte_size, worker, done](absl::StatusOr<ControlResult> result) {
            if (result.ok()) result->reply.memory_bytes = byte_size;
            done(OnAllocated(region_id, worker, std::move(result)));
          });
    }
  }
  if (!status.ok()) done(status);
}

absl::StatusOr<int> ProcessWorkerPool::OnAllocated(uint64_t region_id, int worker,
                                                   absl::StatusOr<ControlResult> result) {
  if (!result.ok()) return result.status();
  if (!result->fd.valid()) return absl::InternalError("the worker gave no descriptor for the tensor's memory");
  absl::MutexLock lock(&mutex_);
  // A link delivers its replies before its death, and the next process starts after that, so this is still the process
  // that has the memory, or none is and the next one gets it from the table.
  slot(worker).mapped.insert(region_id);
  regions_.emplace(region_id, Region{RegionKind::kTensor, Access::kReadWrite, result->reply.memory_bytes,
                                     std::make_shared<const UniqueFd>(std::move(result->fd)), worker});
  return worker;
}

}  // namespace gemmd
