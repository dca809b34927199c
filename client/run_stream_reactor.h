// SPDX-License-Identifier: Apache-2.0
// The gRPC reactor inside RunStream: one write and one read outstanding, the rest queued here. Internal to client/.
#ifndef GEMMD_CLIENT_RUN_STREAM_REACTOR_H_
#define GEMMD_CLIENT_RUN_STREAM_REACTOR_H_

#include "client/client_session.h"
#include "client/run_stream.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/client_context.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>

namespace gemmd {

class RunStream::Reactor final : public grpc::ClientBidiReactor<v1::RunRequest, v1::RunResponse> {
 public:
  Reactor(v1::Gemm::Stub* stub, std::shared_ptr<ClientSession> session, const StreamOptions& options);
  // Cancels what is still in flight and waits for the end.
  ~Reactor() override;

  absl::Status Submit(v1::RunRequest request, RunCallback callback);
  absl::Status Close();

  void OnWriteDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  // Requires: !writing_ and no call of gRPC that ends writes was made. Starts what is to be sent next, if anything.
  void SendNext() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::shared_ptr<ClientSession> session_;
  const StreamOptions options_;
  grpc::ClientContext context_;
  v1::RunRequest sending_;    // Owned by gRPC while writing_.
  v1::RunResponse received_;  // Owned by gRPC between StartRead and OnReadDone.

  absl::Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::deque<v1::RunRequest> waiting_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, RunCallback> callbacks_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool writes_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_RUN_STREAM_REACTOR_H_
