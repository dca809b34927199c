// SPDX-License-Identifier: Apache-2.0
// The Admin service. GetInfo is for every client; the others change the daemon and are taken on the Unix socket only,
// unless the options say otherwise.
#ifndef GEMMD_SERVER_ADMIN_SERVICE_H_
#define GEMMD_SERVER_ADMIN_SERVICE_H_

#include "gemmd/v1/admin.grpc.pb.h"
#include "server/health.h"
#include "server/region_registry.h"
#include "server/request_log.h"
#include "server/session_registry.h"
#include "server/tensor_registry.h"
#include "server/worker_pool.h"

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>
#include <string>

namespace gemmd {

// All outlive the service.
struct AdminParts {
  WorkerPool& pool;
  const RegionRegistry& regions;
  const TensorRegistry& tensors;
  const SessionRegistry& sessions;
  const Health& health;
  const RequestLog& requests;
};

struct AdminSettings {
  std::string version;
  std::string broker_path;
  uint64_t max_message_bytes = 0;
  bool merging = true;
  bool admin_over_tcp = false;
  std::function<void()> start_drain;  // Returns at once; may be called more than once.
};

class AdminService : public v1::Admin::CallbackService {
 public:
  AdminService(AdminParts parts, AdminSettings settings);

  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context, const v1::GetInfoRequest* request,
                                    v1::ServerInfo* info) override;
  grpc::ServerUnaryReactor* WarmUp(grpc::CallbackServerContext* context, const v1::WarmUpRequest* request,
                                   v1::WarmUpResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* SetLogLevel(grpc::CallbackServerContext* context, const v1::SetLogLevelRequest* request,
                                        v1::SetLogLevelResponse* response) override;
  grpc::ServerUnaryReactor* GetTrace(grpc::CallbackServerContext* context, const v1::GetTraceRequest* request,
                                     v1::GetTraceResponse* response) override;

 private:
  grpc::Status CheckAllowed(const grpc::CallbackServerContext& context) const;

  const AdminParts parts_;
  const AdminSettings settings_;
  const int64_t start_time_unix_ns_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_ADMIN_SERVICE_H_
