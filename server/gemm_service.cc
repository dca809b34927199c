// SPDX-License-Identifier: Apache-2.0
#include "server/gemm_service.h"

#include "proto/trace_context.h"
#include "server/convert.h"
#include "server/gemm_stream.h"

#include <iterator>
#include <memory>
#include <utility>

namespace gemmd {
namespace {

// Whose call it is. Errors: UNAUTHENTICATED; UNAVAILABLE when the gate is closed, since a drain ends sessions before it
// ends connections, and who comes in between has done nothing wrong.
absl::StatusOr<std::shared_ptr<Session>> Authenticate(const GemmParts& parts,
                                                      const grpc::CallbackServerContext& context) {
  absl::StatusOr<std::shared_ptr<Session>> session = parts.authenticator.Authenticate(context);
  if (session.ok()) return session;
  const absl::Status gate = parts.gate.Enter().status();
  return gate.ok() ? session.status() : gate;
}

Rejection ReasonOf(const absl::Status& status) {
  return absl::IsUnavailable(status) ? Rejection::kDraining : Rejection::kUnauthenticated;
}

// One unary call. gRPC deletes it through OnDone, which comes after Finish and after OnCancel have returned.
class RunReactor : public grpc::ServerUnaryReactor {
 public:
  RunReactor(const GemmParts& parts, grpc::CallbackServerContext& context, const v1::RunRequest& request,
             v1::RunResponse& response)
      : context_(context),
        response_(response),
        execution_(parts, Submission::kAssist,
                   request.traceparent().empty() ? TraceparentOf(context) : request.traceparent()) {
    absl::StatusOr<std::shared_ptr<Session>> session = Authenticate(parts, context);
    if (!session.ok()) {
      execution_.Reject(ReasonOf(session.status()));
      Reply(session.status());
      return;
    }
    response_.set_request_id(request.request_id());
    const absl::Status status = execution_.Start(request, *session, MonotonicDeadline(context.deadline()),
                                                 [this](const absl::Status& result, const JobCompletion& completion) {
                                                   Reply(execution_.Complete(result, completion, response_));
                                                 });
    if (!status.ok()) Reply(status);
  }

  void OnCancel() override { execution_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  void Reply(const absl::Status& status) {
    execution_.Answer(status);
    if (absl::IsResourceExhausted(status)) {
      context_.AddTrailingMetadata(kRetryPushbackMetadata, kRetryPushbackMillis);
    }
    Finish(ToGrpcStatus(status));
  }

  grpc::CallbackServerContext& context_;
  v1::RunResponse& response_;
  Execution execution_;
};

}  // namespace

std::string TraceparentOf(const grpc::CallbackServerContext& context) {
  const auto [begin, end] = context.client_metadata().equal_range(kTraceparentMetadata);
  if (begin == end) return "";
  if (std::next(begin) != end) return "more than one";
  return std::string(begin->second.data(), begin->second.size());
}

grpc::ServerUnaryReactor* GemmService::Run(grpc::CallbackServerContext* context, const v1::RunRequest* request,
                                           v1::RunResponse* response) {
  return new RunReactor(parts_, *context, *request, *response);
}

grpc::ServerBidiReactor<v1::RunRequest, v1::RunResponse>* GemmService::Stream(grpc::CallbackServerContext* context) {
  absl::StatusOr<std::shared_ptr<Session>> session = Authenticate(parts_, *context);
  if (!session.ok()) parts_.metrics.CountRejection(ReasonOf(session.status()));
  return new GemmStream(parts_, limits_.max_stream_requests, std::move(session), TraceparentOf(*context));
}

}  // namespace gemmd
