// SPDX-License-Identifier: Apache-2.0
// The whole front end put together from its options, and taken apart again in order. Owned by main, which is the one
// thread that calls it.
#ifndef GEMMD_SERVER_DAEMON_H_
#define GEMMD_SERVER_DAEMON_H_

#include "server/admin_service.h"
#include "server/authenticator.h"
#include "server/broker.h"
#include "server/drain_gate.h"
#include "server/file_thread.h"
#include "server/gemm_service.h"
#include "server/grpc_pollers.h"
#include "server/health.h"
#include "server/job_builder.h"
#include "server/listeners.h"
#include "server/metrics.h"
#include "server/metrics_listener.h"
#include "server/options.h"
#include "server/process_worker_pool.h"
#include "server/region_registry.h"
#include "server/request_log.h"
#include "server/session_registry.h"
#include "server/session_service.h"
#include "server/staging_arena.h"
#include "server/tensor_files.h"
#include "server/tensor_registry.h"
#include "server/tensor_service.h"
#include "server/token_guard.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace gemmd {

class Daemon {
 public:
  // Returns when the workers are ready and the listeners are open. `start_drain` is what Admin.Drain calls; it returns
  // at once. Errors: whatever keeps a part from starting, as one sentence for the operator.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(ServerOptions options, std::function<void()> start_drain);

  // Stops what still runs, without a drain.
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // "gemmd ready: listen=unix:PATH,HOST:PORT metrics=HOST:PORT workers=cpu". Programs parse it: keys and order stay.
  std::string ReadyLine() const;

  // Health NOT_SERVING; after the delay new work is refused; returns when what was accepted is answered, or at the
  // timeout (false).
  bool Drain();

 private:
  explicit Daemon(ServerOptions options);

  absl::Status OpenTokens();
  absl::Status StartWorkers();
  absl::Status StartServices(std::function<void()> start_drain);
  absl::Status LoadTensors();
  absl::Status StartListeners();

  const ServerOptions options_;
  const std::optional<int> loop_cpu_;
  Metrics metrics_;
  RequestLog requests_;
  DrainGate gate_;
  // From here each part uses only parts above it; destruction goes the other way.
  std::shared_ptr<TokenGuard> token_guard_;  // Null without --token_file.
  std::unique_ptr<Health> health_;
  std::unique_ptr<ProcessWorkerPool> pool_;
  std::shared_ptr<RegionRegistry> regions_;
  std::shared_ptr<TensorRegistry> tensors_;
  std::unique_ptr<SessionRegistry> sessions_;
  std::unique_ptr<StagingArena> arena_;
  TensorFiles tensor_files_;
  std::unique_ptr<FileThread> file_thread_;
  std::unique_ptr<Authenticator> authenticator_;
  std::unique_ptr<JobBuilder> builder_;
  std::unique_ptr<GemmService> gemm_service_;
  std::unique_ptr<TensorService> tensor_service_;
  std::unique_ptr<SessionService> session_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<Broker> broker_;
  std::unique_ptr<MetricsListener> metrics_listener_;
  RunningServer server_;
  std::unique_ptr<GrpcPollers> pollers_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_DAEMON_H_
