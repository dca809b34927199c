// SPDX-License-Identifier: Apache-2.0
// The Gemm service: the unary call and the pipelined stream. Reactions run on gRPC's threads, completions on the
// threads of worker links; both only translate and hand over.
#ifndef GEMMD_SERVER_GEMM_SERVICE_H_
#define GEMMD_SERVER_GEMM_SERVICE_H_

#include "gemmd/v1/gemm.grpc.pb.h"
#include "server/execution.h"

#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <string>

namespace gemmd {

struct GemmServiceLimits {
  // Requests of one stream that are in flight or whose responses wait to be sent. At the bound the stream is not read,
  // so that a client that sends without reading is slowed by flow control instead of filling our memory.
  size_t max_stream_requests = 256;
};

// How long a client should wait before it repeats what was refused with RESOURCE_EXHAUSTED: about what a full queue of
// small products takes.
inline constexpr char kRetryPushbackMetadata[] = "grpc-retry-pushback-ms";
inline constexpr char kRetryPushbackMillis[] = "20";

// The traceparent of a call, as it came; empty if it has none. More than one are malformed.
std::string TraceparentOf(const grpc::CallbackServerContext& context);

class GemmService : public v1::Gemm::CallbackService {
 public:
  GemmService(GemmParts parts, GemmServiceLimits limits) : parts_(parts), limits_(limits) {}

  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, const v1::RunRequest* request,
                                v1::RunResponse* response) override;
  grpc::ServerBidiReactor<v1::RunRequest, v1::RunResponse>* Stream(grpc::CallbackServerContext* context) override;

 private:
  const GemmParts parts_;
  const GemmServiceLimits limits_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_GEMM_SERVICE_H_
