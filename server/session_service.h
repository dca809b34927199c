// SPDX-License-Identifier: Apache-2.0
// gemmd.v1.Sessions: opens sessions for clients that have no broker, and registers shared memory by name. Only
// translates; the work is in the registries. Reactions run on gRPC's threads and never block.
#ifndef GEMMD_SERVER_SESSION_SERVICE_H_
#define GEMMD_SERVER_SESSION_SERVICE_H_

#include "gemmd/v1/sessions.grpc.pb.h"
#include "server/authenticator.h"
#include "server/region_registry.h"
#include "server/session_registry.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"

namespace gemmd {

class SessionService : public v1::Sessions::CallbackService {
 public:
  // All arguments must outlive the service, and the service its server.
  SessionService(SessionRegistry& sessions, RegionRegistry& regions, const Authenticator& authenticator)
      : sessions_(sessions), regions_(regions), authenticator_(authenticator) {}

  grpc::ServerWriteReactor<v1::SessionEvent>* Open(grpc::CallbackServerContext* context,
                                                   const v1::OpenSessionRequest* request) override;
  grpc::ServerUnaryReactor* RegisterSharedMemory(grpc::CallbackServerContext* context,
                                                 const v1::RegisterSharedMemoryRequest* request,
                                                 v1::Region* response) override;
  grpc::ServerUnaryReactor* CloseRegion(grpc::CallbackServerContext* context, const v1::CloseRegionRequest* request,
                                        v1::CloseRegionResponse* response) override;
  grpc::ServerUnaryReactor* ListRegions(grpc::CallbackServerContext* context, const v1::ListRegionsRequest* request,
                                        v1::ListRegionsResponse* response) override;

  // Ends every Open stream, and so its session, with UNAVAILABLE; later ones end at once. The last step of a drain: the
  // streams would keep the server from shutting down.
  void EndSessions();

 private:
  class OpenReactor;

  bool ended() const;
  bool Add(OpenReactor* stream);  // False once ended.
  void Remove(OpenReactor* stream);

  SessionRegistry& sessions_;
  RegionRegistry& regions_;
  const Authenticator& authenticator_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_set<OpenReactor*> streams_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_SESSION_SERVICE_H_
