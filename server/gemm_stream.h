// SPDX-License-Identifier: Apache-2.0
// One call of Gemm.Stream. Reads on while requests are in flight, answers in order of completion, and ends when the
// client has closed its side and everything is answered, or when the call is cancelled and every job has come back.
#ifndef GEMMD_SERVER_GEMM_STREAM_H_
#define GEMMD_SERVER_GEMM_STREAM_H_

#include "gemmd/v1/gemm.pb.h"
#include "server/execution.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>

namespace gemmd {

// Deletes itself when gRPC is done with it. gRPC is never called under the lock.
class GemmStream : public grpc::ServerBidiReactor<v1::RunRequest, v1::RunResponse> {
 public:
  // `traceparent`: of the call, for requests that have none of their own.
  GemmStream(const GemmParts& parts, size_t max_requests, absl::StatusOr<std::shared_ptr<Session>> session,
             std::string traceparent);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  struct Request {
    Request(const GemmParts& parts, absl::string_view traceparent)
        : execution(parts, Submission::kLeave, traceparent) {}
    Execution execution;
    v1::RunResponse response;
  };
  // What to ask of gRPC once the lock is released.
  struct Next {
    bool read = false;
    const v1::RunResponse* write = nullptr;
    bool finish = false;
  };

  void Handle(const v1::RunRequest& message);
  void OnCompletion(uint64_t request_id, const absl::Status& status, const JobCompletion& completion);
  void Reply(std::shared_ptr<Request> request, const absl::Status& status);
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(const Next& next);

  const GemmParts& parts_;
  const size_t max_requests_;
  const absl::StatusOr<std::shared_ptr<Session>> session_;
  const std::string traceparent_;
  v1::RunRequest incoming_;

  absl::Mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Request>> in_flight_ ABSL_GUARDED_BY(mutex_);  // By request_id.
  std::deque<std::shared_ptr<Request>> replies_ ABSL_GUARDED_BY(mutex_);  // The first is being written if writing_.
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_GEMM_STREAM_H_
