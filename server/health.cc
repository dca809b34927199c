// SPDX-License-Identifier: Apache-2.0
#include "server/health.h"

#include "absl/strings/str_cat.h"

namespace gemmd {

std::map<std::string, bool> ServingNames(const std::vector<WorkerSnapshot>& workers, bool draining) {
  std::map<std::string, bool> serving;
  bool any = false;
  for (const WorkerSnapshot& worker : workers) {
    const bool ready = !draining && worker.state == WorkerState::kReady;
    bool& device = serving[absl::StrCat(kGemmServiceName, "/", worker.traits.device)];
    device = device || ready;
    any = any || ready;
  }
  serving[""] = any;
  serving[kGemmServiceName] = any;
  return serving;
}

void Health::Attach(grpc::HealthCheckServiceInterface* service) {
  absl::MutexLock lock(&mutex_);
  service_ = service;
  Publish();
}

void Health::Update() {
  absl::MutexLock lock(&mutex_);
  Publish();
}

void Health::SetDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  Publish();
}

bool Health::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

// Under the lock, so that the last snapshot is the last one published.
void Health::Publish() {
  const std::map<std::string, bool> serving = ServingNames(pool_.Snapshot(), draining_);
  metrics_.SetReady(serving.at(""));
  if (service_ == nullptr) return;
  for (const auto& [name, value] : serving) service_->SetServingStatus(name, value);
}

}  // namespace gemmd
