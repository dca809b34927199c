// SPDX-License-Identifier: Apache-2.0
// The baseline of service_bench: a bare gRPC callback server that answers Gemm.Run with a fixed response and does
// nothing else. Same messages as gemmd, no work, and gRPC as the distribution builds it (proto/lock_checks.h).
//
// Usage: gemmd-echo-server SOCKET_PATH RESPONSE_BYTES; prints "ready" and runs until its standard input ends.
#include "gemmd/v1/gemm.grpc.pb.h"
#include "tests/bench/serve_bare.h"

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

class EchoService final : public gemmd::v1::Gemm::CallbackService {
 public:
  explicit EchoService(size_t response_bytes) : payload_(response_bytes, 'x') {}

  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, const gemmd::v1::RunRequest* request,
                                gemmd::v1::RunResponse* response) override {
    response->set_request_id(request->request_id());
    response->set_d(payload_);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const std::string payload_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s SOCKET_PATH RESPONSE_BYTES\n", argv[0]);
    return 2;
  }
  EchoService service(std::strtoul(argv[2], nullptr, 10));
  return gemmd::ServeBare(service, argv[1]);
}
