// SPDX-License-Identifier: Apache-2.0
#include "server/admin_service.h"

#include "proto/job_ring.h"
#include "proto/log.h"
#include "server/convert.h"
#include "server/metrics.h"
#include "server/warm_up.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/spdlog.h"

#include <memory>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

bool OnUnixSocket(const grpc::CallbackServerContext& context) { return absl::StartsWith(context.peer(), "unix:"); }

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext& context, const grpc::Status& status) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

// One WarmUp: the shapes one after another, because each occupies the compiler anyway.
class WarmUpReactor : public grpc::ServerUnaryReactor {
 public:
  WarmUpReactor(WorkerPool& pool, std::vector<PrepareShape> shapes, v1::WarmUpResponse& response)
      : pool_(pool), shapes_(std::move(shapes)), response_(response), start_(absl::Now()) {
    Next();
  }

  void OnDone() override { delete this; }

 private:
  void Next() {
    if (next_ == shapes_.size()) return End(absl::OkStatus());
    pool_.Prepare(shapes_[next_++], [this](absl::StatusOr<ControlReply> reply) {
      if (!reply.ok()) return End(reply.status());
      response_.set_kernels_ready(response_.kernels_ready() + reply->kernels_ready);
      response_.set_kernels_compiled(response_.kernels_compiled() + reply->kernels_compiled);
      Next();
    });
  }

  void End(const absl::Status& status) {
    response_.set_seconds(absl::ToDoubleSeconds(absl::Now() - start_));
    Finish(ToGrpcStatus(status));
  }

  WorkerPool& pool_;
  const std::vector<PrepareShape> shapes_;
  v1::WarmUpResponse& response_;
  const absl::Time start_;
  size_t next_ = 0;
};

void Fill(const WorkerSnapshot& worker, bool merging, v1::WorkerInfo& info) {
  info.set_device(worker.traits.device);
  info.set_name(worker.traits.name);
  info.set_state(static_cast<v1::WorkerInfo::State>(worker.state));
  info.set_restarts(worker.restarts);
  info.set_pid(worker.pid);
  info.set_cores(worker.traits.cores);
  info.set_mps(worker.traits.mps);
  info.set_memory_bytes(worker.traits.memory_bytes);
  info.set_jobs_in_flight(worker.jobs_in_flight);
  info.set_merging(merging);
}
void Fill(const TracedRequest& request, v1::RequestTrace& trace) {
  trace.set_trace_id(TraceIdHex(request.context.trace_id));
  trace.set_span_id(SpanIdHex(request.span_id));
  if (request.context.span_id != 0) trace.set_parent_span_id(SpanIdHex(request.context.span_id));
  trace.set_request_id(request.request_id);
  trace.set_op(std::string(Name(request.op)));
  trace.set_transport(std::string(Name(request.transport)));
  trace.set_code(static_cast<int>(request.code));
  trace.set_m(request.shape.m);
  trace.set_n(request.shape.n);
  trace.set_k(request.shape.k);
  trace.set_groups(request.shape.groups);
  trace.set_worker(request.worker);
  trace.set_batch_jobs(request.batch_jobs);
  trace.set_received_ns(request.received_ns);
  trace.set_submitted_ns(request.submitted_ns);
  trace.set_launched_ns(request.launched_ns);
  trace.set_finished_ns(request.finished_ns);
  trace.set_completed_ns(request.completed_ns);
  trace.set_answered_ns(request.answered_ns);
}

static_assert(static_cast<int>(WorkerState::kStarting) == v1::WorkerInfo::STARTING &&
              static_cast<int>(WorkerState::kReady) == v1::WorkerInfo::READY &&
              static_cast<int>(WorkerState::kDead) == v1::WorkerInfo::DEAD &&
              static_cast<int>(WorkerState::kQuarantined) == v1::WorkerInfo::QUARANTINED);

}  // namespace

AdminService::AdminService(AdminParts parts, AdminSettings settings)
    : parts_(parts), settings_(std::move(settings)), start_time_unix_ns_(absl::ToUnixNanos(absl::Now())) {}

grpc::Status AdminService::CheckAllowed(const grpc::CallbackServerContext& context) const {
  if (settings_.admin_over_tcp || OnUnixSocket(context)) return grpc::Status::OK;
  return ToGrpcStatus(absl::PermissionDeniedError("administration is taken on the Unix socket only"));
}

grpc::ServerUnaryReactor* AdminService::GetInfo(grpc::CallbackServerContext* context, const v1::GetInfoRequest*,
                                                v1::ServerInfo* info) {
  info->set_version(settings_.version);
  info->set_start_time_unix_ns(start_time_unix_ns_);
  info->set_draining(parts_.health.draining());
  for (const WorkerSnapshot& worker : parts_.pool.Snapshot()) Fill(worker, settings_.merging, *info->add_workers());
  info->set_max_message_bytes(settings_.max_message_bytes);
  if (OnUnixSocket(*context)) info->set_broker_path(settings_.broker_path);
  const SessionCounts sessions = parts_.sessions.Counts();
  info->set_sessions(static_cast<uint32_t>(sessions.open_local + sessions.open_remote));
  const RegionCounts regions = parts_.regions.Counts();
  info->set_regions(regions.regions());
  info->set_region_bytes(regions.bytes());
  const TensorCounts tensors = parts_.tensors.Counts();
  info->set_tensors(tensors.private_tensors + tensors.shared_tensors);
  info->set_tensor_bytes(tensors.bytes);
  return FinishNow(*context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* AdminService::WarmUp(grpc::CallbackServerContext* context, const v1::WarmUpRequest* request,
                                               v1::WarmUpResponse* response) {
  if (const grpc::Status status = CheckAllowed(*context); !status.ok()) return FinishNow(*context, status);
  absl::StatusOr<std::vector<PrepareShape>> shapes = ToPrepareShapes(*request);
  if (!shapes.ok()) return FinishNow(*context, ToGrpcStatus(shapes.status()));
  return new WarmUpReactor(parts_.pool, *std::move(shapes), *response);
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context, const v1::DrainRequest*,
                                              v1::DrainResponse*) {
  if (const grpc::Status status = CheckAllowed(*context); !status.ok()) return FinishNow(*context, status);
  settings_.start_drain();
  return FinishNow(*context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* AdminService::SetLogLevel(grpc::CallbackServerContext* context,
                                                    const v1::SetLogLevelRequest* request,
                                                    v1::SetLogLevelResponse* response) {
  if (const grpc::Status status = CheckAllowed(*context); !status.ok()) return FinishNow(*context, status);
  const absl::StatusOr<spdlog::level::level_enum> level = ParseLogLevel(request->level());
  if (!level.ok()) return FinishNow(*context, ToGrpcStatus(level.status()));
  const auto previous = spdlog::level::to_string_view(spdlog::get_level());
  response->set_previous_level(std::string(previous.data(), previous.size()));
  spdlog::set_level(*level);
  parts_.pool.SetLogLevel(static_cast<uint8_t>(*level));
  return FinishNow(*context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* AdminService::GetTrace(grpc::CallbackServerContext* context, const v1::GetTraceRequest*,
                                                 v1::GetTraceResponse* response) {
  if (const grpc::Status status = CheckAllowed(*context); !status.ok()) return FinishNow(*context, status);
  for (const TracedRequest& request : parts_.requests.Latest()) Fill(request, *response->add_requests());
  response->set_now_ns(MonotonicNanos());
  response->set_now_unix_ns(absl::ToUnixNanos(absl::Now()));
  return FinishNow(*context, grpc::Status::OK);
}

}  // namespace gemmd
