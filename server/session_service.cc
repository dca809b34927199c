// SPDX-License-Identifier: Apache-2.0
#include "server/session_service.h"

#include "server/convert.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <atomic>
#include <memory>
#include <utility>

namespace gemmd {
namespace {

v1::RegionKind KindOf(RegionKind kind) {
  switch (kind) {
    case RegionKind::kHost:
      return v1::HOST;
    case RegionKind::kSharedMemory:
      return v1::SHARED_MEMORY;
    case RegionKind::kDevice:
      return v1::DEVICE;
    case RegionKind::kDeviceIpc:
      return v1::DEVICE_IPC;
    case RegionKind::kPool:
      return v1::POOL;
    case RegionKind::kTensor:
      break;  // No region of a session.
  }
  return v1::REGION_KIND_UNSPECIFIED;
}

void Fill(const RegionView& view, v1::Region& region) {
  region.set_id(view.region_id);
  region.set_kind(KindOf(view.kind));
  region.set_byte_size(view.byte_size);
  region.set_writable(view.writable);
  region.set_device(view.device);
}

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace

// One Open stream; the session lives as long. The client ends it by cancelling.
class SessionService::OpenReactor : public grpc::ServerWriteReactor<v1::SessionEvent> {
 public:
  OpenReactor(SessionService& service, const v1::OpenSessionRequest& request) : service_(service) {
    if (service_.ended()) {
      End(absl::UnavailableError("draining"));
      return;
    }
    absl::StatusOr<std::shared_ptr<Session>> session =
        service_.sessions_.Open(Identity{.remote = true, .uid = 0}, request.client_name());
    if (!session.ok()) {
      End(session.status());
      return;
    }
    session_ = *std::move(session);
    event_.set_session_id(session_->id());
    event_.set_secret(session_->SecretHex());
    StartWrite(&event_);
    // From here on EndSessions may finish the stream; it may also have passed just now.
    if (!service_.Add(this)) End(absl::UnavailableError("draining"));
  }

  void End(const absl::Status& status) {
    if (!ended_.exchange(true)) Finish(ToGrpcStatus(status));
  }

  void OnWriteDone(bool ok) override {
    if (!ok) End(absl::CancelledError("the client is gone"));
  }
  void OnCancel() override { End(absl::CancelledError("the stream was cancelled")); }
  void OnDone() override {
    service_.Remove(this);
    if (session_ != nullptr) {
      service_.sessions_.Close(session_->id(), service_.ended() ? SessionEnd::kShutdown : SessionEnd::kClient);
    }
    delete this;
  }

 private:
  SessionService& service_;
  std::shared_ptr<Session> session_;
  v1::SessionEvent event_;
  std::atomic<bool> ended_{false};
};

grpc::ServerWriteReactor<v1::SessionEvent>* SessionService::Open(grpc::CallbackServerContext*,
                                                                 const v1::OpenSessionRequest* request) {
  return new OpenReactor(*this, *request);
}

bool SessionService::ended() const {
  absl::MutexLock lock(&mutex_);
  return ended_;
}

bool SessionService::Add(OpenReactor* stream) {
  absl::MutexLock lock(&mutex_);
  if (ended_) return false;
  streams_.insert(stream);
  return true;
}

void SessionService::Remove(OpenReactor* stream) {
  absl::MutexLock lock(&mutex_);
  streams_.erase(stream);
}

void SessionService::EndSessions() {
  absl::MutexLock lock(&mutex_);
  ended_ = true;
  // Under the lock, so that no stream is destroyed meanwhile. OnDone runs on a thread of gRPC, never inside Finish.
  for (OpenReactor* stream : streams_) stream->End(absl::UnavailableError("draining"));
}

grpc::ServerUnaryReactor* SessionService::RegisterSharedMemory(grpc::CallbackServerContext* context,
                                                               const v1::RegisterSharedMemoryRequest* request,
                                                               v1::Region* response) {
  const absl::StatusOr<std::shared_ptr<Session>> session = authenticator_.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const RegionExtent extent{request->byte_size(), request->writable()};
  regions_.RegisterSharedMemory(
      *session, request->name(), extent, [reactor, response, extent](const absl::StatusOr<uint64_t>& region_id) {
        if (region_id.ok()) {
          Fill(RegionView{*region_id, RegionKind::kSharedMemory, extent.byte_size, extent.writable}, *response);
        }
        reactor->Finish(ToGrpcStatus(region_id.status()));
      });
  return reactor;
}

grpc::ServerUnaryReactor* SessionService::CloseRegion(grpc::CallbackServerContext* context,
                                                      const v1::CloseRegionRequest* request, v1::CloseRegionResponse*) {
  const absl::StatusOr<std::shared_ptr<Session>> session = authenticator_.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  regions_.Close(**session, request->region_id(),
                 [reactor](const absl::Status& status) { reactor->Finish(ToGrpcStatus(status)); });
  return reactor;
}

grpc::ServerUnaryReactor* SessionService::ListRegions(grpc::CallbackServerContext* context,
                                                      const v1::ListRegionsRequest*,
                                                      v1::ListRegionsResponse* response) {
  const absl::StatusOr<std::shared_ptr<Session>> session = authenticator_.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  for (const RegionView& view : regions_.List(**session)) Fill(view, *response->add_regions());
  return Finished(context, absl::OkStatus());
}

}  // namespace gemmd
