// SPDX-License-Identifier: Apache-2.0
// The main loop of the bare gRPC servers that benchmarks compare gemmd with.
#ifndef GEMMD_TESTS_BENCH_SERVE_BARE_H_
#define GEMMD_TESTS_BENCH_SERVE_BARE_H_

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <string>

namespace gemmd {

// Serves on a Unix socket, says "ready" on standard output, and runs until standard input ends. Returns main's status.
inline int ServeBare(grpc::Service& service, const std::string& socket_path) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + socket_path, grpc::InsecureServerCredentials());
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::puts("ready");
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  server->Shutdown();
  return 0;
}

}  // namespace gemmd

#endif  // GEMMD_TESTS_BENCH_SERVE_BARE_H_
