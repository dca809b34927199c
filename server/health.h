// SPDX-License-Identifier: Apache-2.0
// What gRPC's health service says: "" and "gemmd.v1.Gemm" for the daemon (SERVING while it is not draining and some
// worker is ready), "gemmd.v1.Gemm/<device>" for each device. Told by the pool and by the drain.
#ifndef GEMMD_SERVER_HEALTH_H_
#define GEMMD_SERVER_HEALTH_H_

#include "server/metrics.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/health_check_service_interface.h>

#include <map>
#include <string>
#include <vector>

namespace gemmd {

inline constexpr char kGemmServiceName[] = "gemmd.v1.Gemm";

// What each health name should say. Pure.
std::map<std::string, bool> ServingNames(const std::vector<WorkerSnapshot>& workers, bool draining);

// Thread-safe.
class Health {
 public:
  // Both outlive this.
  Health(const WorkerPool& pool, Metrics& metrics) : pool_(pool), metrics_(metrics) {}

  // Publishes to the server's health service from now on; null stops that. The service outlives the next Attach.
  void Attach(grpc::HealthCheckServiceInterface* service);

  // After a change of the pool.
  void Update();

  // From now on everything is NOT_SERVING.
  void SetDraining();
  bool draining() const;

 private:
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WorkerPool& pool_;
  Metrics& metrics_;
  mutable absl::Mutex mutex_;
  grpc::HealthCheckServiceInterface* service_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_HEALTH_H_
