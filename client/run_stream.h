// SPDX-License-Identifier: Apache-2.0
// Pipelined operations: any number in flight on one gRPC stream, answered in the order in which they finish. Made by
// Client::OpenStream.
#ifndef GEMMD_CLIENT_RUN_STREAM_H_
#define GEMMD_CLIENT_RUN_STREAM_H_

#include "client/gpu_order.h"
#include "gemmd/v1/gemm.grpc.pb.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <cstdint>
#include <functional>
#include <memory>

namespace gemmd {

// Called once for each operation, on a thread of gRPC; must not block. The status is the operation's own.
using RunCallback = std::function<void(absl::StatusOr<v1::RunResponse>)>;

struct StreamOptions {
  // Submit refuses more. 1024 is the number of slots of the daemon's own queue.
  int64_t max_in_flight = 1024;
};

// Thread-safe. Neither Close nor the destructor may be called from a RunCallback.
class RunStream {
 public:
  ~RunStream();
  RunStream(const RunStream&) = delete;
  RunStream& operator=(const RunStream&) = delete;

  // Sends one operation; chooses its request_id. RunRequest::timeout_us bounds its wait in the queue. Waits for the
  // GPU that operands are on (ConnectOptions::synchronize).
  // Errors (the callback is then never called): RESOURCE_EXHAUSTED (max_in_flight), FAILED_PRECONDITION (after Close),
  // the status with which the stream broke, or INTERNAL (waiting for the GPU).
  absl::Status Submit(v1::RunRequest request, RunCallback callback);

  // Waits until all operations are answered, then ends the stream. Gives the stream's status. Later calls give the
  // same.
  absl::Status Close();

 private:
  friend class Client;
  class Reactor;
  RunStream(std::unique_ptr<Reactor> reactor, std::shared_ptr<const GpuOrder> order);

  const std::unique_ptr<Reactor> reactor_;
  const std::shared_ptr<const GpuOrder> order_;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_RUN_STREAM_H_
