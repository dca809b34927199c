// SPDX-License-Identifier: Apache-2.0
#include "server/gemm_stream.h"

#include "proto/job_ring.h"
#include "server/convert.h"

#include "absl/strings/str_cat.h"

#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr uint64_t kNanosPerMicro = 1000;
// Longer timeouts are none at all; the bound keeps the sum below in range.
constexpr uint64_t kMaxTimeoutMicros = uint64_t{365} * 24 * 3600 * 1'000'000;

uint64_t DeadlineOf(const v1::RunRequest& request) {
  if (request.timeout_us() == 0 || request.timeout_us() > kMaxTimeoutMicros) return 0;
  return MonotonicNanos() + request.timeout_us() * kNanosPerMicro;
}

}  // namespace

GemmStream::GemmStream(const GemmParts& parts, size_t max_requests, absl::StatusOr<std::shared_ptr<Session>> session,
                       std::string traceparent)
    : parts_(parts), max_requests_(max_requests), session_(std::move(session)), traceparent_(std::move(traceparent)) {
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    if (!session_.ok()) half_closed_ = true;
    next = Advance();
  }
  Do(next);
}

// The one place that decides what happens next.
GemmStream::Next GemmStream::Advance() {
  Next next;
  if (finished_) return next;
  if (!cancelled_ && !writing_ && !replies_.empty()) {
    writing_ = true;
    next.write = &replies_.front()->response;
  }
  const bool room = in_flight_.size() + replies_.size() < max_requests_;
  if (!cancelled_ && !half_closed_ && !reading_ && room) {
    reading_ = true;
    next.read = true;
  }
  const bool no_more = cancelled_ || (half_closed_ && replies_.empty());
  if (no_more && !reading_ && !writing_ && in_flight_.empty()) {
    finished_ = true;
    next.finish = true;
  }
  return next;
}

void GemmStream::Do(const Next& next) {
  if (next.write != nullptr) StartWrite(next.write);
  if (next.read) StartRead(&incoming_);
  // Nothing else is under way then, and the stream may be deleted by another thread from here on.
  if (next.finish) Finish(ToGrpcStatus(session_.status()));
}

void GemmStream::OnReadDone(bool ok) {
  if (ok) Handle(incoming_);
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (!ok) half_closed_ = true;
    next = Advance();
  }
  Do(next);
}

void GemmStream::Handle(const v1::RunRequest& message) {
  const std::string& own = message.traceparent();
  auto request = std::make_shared<Request>(parts_, own.empty() ? traceparent_ : own);
  const uint64_t id = message.request_id();
  request->response.set_request_id(id);
  bool duplicate = false;
  {
    absl::MutexLock lock(&mutex_);
    duplicate = !in_flight_.emplace(id, request).second;
  }
  if (duplicate) {
    return Reply(std::move(request), absl::InvalidArgumentError(absl::StrCat(
                                         "request_id: expected one that is not in flight on this stream, got ", id)));
  }
  const absl::Status status = request->execution.Start(
      message, *session_, DeadlineOf(message), [this, id](const absl::Status& result, const JobCompletion& completion) {
        OnCompletion(id, result, completion);
      });
  if (!status.ok()) {
    {
      absl::MutexLock lock(&mutex_);
      in_flight_.erase(id);
    }
    return Reply(std::move(request), status);
  }
  bool cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    cancelled = cancelled_;
  }
  if (cancelled) request->execution.Cancel();
}

void GemmStream::OnCompletion(uint64_t request_id, const absl::Status& status, const JobCompletion& completion) {
  std::shared_ptr<Request> request;
  {
    absl::MutexLock lock(&mutex_);
    request = in_flight_[request_id];
  }
  const absl::Status result = request->execution.Complete(status, completion, request->response);
  Reply(std::move(request), result);
}

void GemmStream::Reply(std::shared_ptr<Request> request, const absl::Status& status) {
  request->execution.Answer(status);
  const grpc::Status wire = ToGrpcStatus(status);
  v1::RunStatus& field = *request->response.mutable_status();
  field.set_code(wire.error_code());
  field.set_message(wire.error_message());
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = in_flight_.find(request->response.request_id());
    if (found != in_flight_.end() && found->second == request) in_flight_.erase(found);
    replies_.push_back(std::move(request));
    next = Advance();
  }
  Do(next);
}

void GemmStream::OnWriteDone(bool ok) {
  std::shared_ptr<Request> written;
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    written = std::move(replies_.front());
    replies_.pop_front();
    // The client is gone; OnCancel comes as well, but not necessarily first.
    if (!ok) cancelled_ = true;
    next = Advance();
  }
  Do(next);
}

void GemmStream::OnCancel() {
  std::vector<std::shared_ptr<Request>> requests;
  Next next;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    for (const auto& [id, request] : in_flight_) requests.push_back(request);
    next = Advance();
  }
  for (const std::shared_ptr<Request>& request : requests) request->execution.Cancel();
  Do(next);
}

}  // namespace gemmd
