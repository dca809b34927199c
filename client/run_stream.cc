// SPDX-License-Identifier: Apache-2.0
#include "client/run_stream.h"

#include "client/grpc_status.h"
#include "client/run_stream_reactor.h"

#include "absl/strings/str_cat.h"

#include <utility>

namespace gemmd {

RunStream::RunStream(std::unique_ptr<Reactor> reactor, std::shared_ptr<const GpuOrder> order)
    : reactor_(std::move(reactor)), order_(std::move(order)) {}
RunStream::~RunStream() = default;

absl::Status RunStream::Submit(v1::RunRequest request, RunCallback callback) {
  if (absl::Status status = order_->Await(request); !status.ok()) return status;
  return reactor_->Submit(std::move(request), std::move(callback));
}

absl::Status RunStream::Close() { return reactor_->Close(); }

RunStream::Reactor::Reactor(v1::Gemm::Stub* stub, std::shared_ptr<ClientSession> session, const StreamOptions& options)
    : session_(std::move(session)), options_(options) {
  session_->Authorize(&context_);
  stub->async()->Stream(&context_, this);
  // Writes start outside reactions, from any thread, until StartWritesDone: the hold covers that time.
  AddHold();
  StartRead(&received_);
  StartCall();
}

RunStream::Reactor::~Reactor() {
  context_.TryCancel();
  // The answer to the cancellation fails whatever is left.
  Close().IgnoreError();
}

absl::Status RunStream::Reactor::Submit(v1::RunRequest request, RunCallback callback) {
  {
    const absl::MutexLock lock(&mutex_);
    if (finished_) return status_.ok() ? absl::UnavailableError("stream: ended by the daemon") : status_;
    if (closing_) return absl::FailedPreconditionError("stream: closed");
    if (static_cast<int64_t>(callbacks_.size()) >= options_.max_in_flight) {
      return absl::ResourceExhaustedError(
          absl::StrCat("stream: expected at most ", options_.max_in_flight, " operations in flight"));
    }
    const uint64_t id = next_id_++;
    request.set_request_id(id);
    callbacks_.emplace(id, std::move(callback));
    waiting_.push_back(std::move(request));
  }
  SendNext();
  return absl::OkStatus();
}

absl::Status RunStream::Reactor::Close() {
  {
    const absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  SendNext();
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&finished_));
  return status_;
}

void RunStream::Reactor::SendNext() {
  bool write = false;
  bool end = false;
  {
    const absl::MutexLock lock(&mutex_);
    if (writing_ || writes_done_) return;
    if (!waiting_.empty()) {
      sending_ = std::move(waiting_.front());
      waiting_.pop_front();
      writing_ = write = true;
    } else if (closing_) {
      writes_done_ = end = true;
    }
  }
  if (write) StartWrite(&sending_);
  if (end) {
    StartWritesDone();
    RemoveHold();
  }
}

void RunStream::Reactor::OnWriteDone(bool ok) {
  {
    const absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) waiting_.clear();  // The stream is broken; OnDone answers for them.
  }
  SendNext();
}

void RunStream::Reactor::OnReadDone(bool ok) {
  if (!ok) {
    // The daemon has ended the stream: nothing more is written, so that OnDone can come.
    {
      const absl::MutexLock lock(&mutex_);
      closing_ = true;
      waiting_.clear();
    }
    SendNext();
    return;
  }
  RunCallback callback;
  {
    const absl::MutexLock lock(&mutex_);
    const auto found = callbacks_.find(received_.request_id());
    if (found != callbacks_.end()) {
      callback = std::move(found->second);
      callbacks_.erase(found);
    }
  }
  v1::RunResponse response = std::move(received_);
  received_.Clear();
  StartRead(&received_);
  if (callback == nullptr) return;
  if (response.status().code() == 0) {
    callback(std::move(response));
  } else {
    callback(absl::Status(static_cast<absl::StatusCode>(response.status().code()), response.status().message()));
  }
}

void RunStream::Reactor::OnDone(const grpc::Status& grpc_status) {
  const absl::Status status = FromGrpc(grpc_status);
  std::unordered_map<uint64_t, RunCallback> unanswered;
  {
    const absl::MutexLock lock(&mutex_);
    unanswered.swap(callbacks_);
  }
  for (auto& [id, callback] : unanswered) {
    callback(status.ok() ? absl::UnavailableError("stream: ended before the answer came") : status);
  }
  // Last, since it lets the destructor go on.
  const absl::MutexLock lock(&mutex_);
  status_ = status;
  finished_ = true;
}

}  // namespace gemmd
