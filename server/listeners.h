// SPDX-License-Identifier: Apache-2.0
// The gRPC server: where it listens, with which credentials, within which limits. Used by server/daemon.cc.
#ifndef GEMMD_SERVER_LISTENERS_H_
#define GEMMD_SERVER_LISTENERS_H_

#include "server/options.h"
#include "server/token_guard.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

namespace gemmd {

// Makes the directory of a Unix socket (0750) if it is missing and removes a socket that nobody listens on.
// Errors: ALREADY_EXISTS if somebody does (the daemon is already running) or if it is something else than a socket.
absl::Status PrepareSocketPath(const std::string& path);

struct RunningServer {
  std::unique_ptr<grpc::Server> server;
  std::vector<std::string> addresses;  // "unix:PATH", "HOST:PORT" with the real ports.
};

// Starts a server of these services, which must outlive it, with gRPC health and reflection beside them. `guard`, if
// any, stands before the HOST:PORT listeners; the Unix socket is guarded by its mode.
// Requires: CheckTlsFiles. Errors: UNAVAILABLE (an address cannot be used).
absl::StatusOr<RunningServer> StartServer(const ServerOptions& options, absl::Span<grpc::Service* const> services,
                                          std::shared_ptr<TokenGuard> guard);

}  // namespace gemmd

#endif  // GEMMD_SERVER_LISTENERS_H_
