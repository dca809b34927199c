// SPDX-License-Identifier: Apache-2.0
// Lets only calls with a bearer token past a listener, whatever they call: our services, reflection, unknown methods.
// Health checks need none, since those who balance load and restart containers have none. Made in server/daemon.cc,
// called by gRPC before a call reaches its service.
#ifndef GEMMD_SERVER_TOKEN_GUARD_H_
#define GEMMD_SERVER_TOKEN_GUARD_H_

#include "server/token_file.h"

#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>

#include <functional>
#include <memory>

namespace gemmd {

// Thread-safe.
class TokenGuard : public grpc::AuthMetadataProcessor {
 public:
  // `on_refused` is called for each refused call, on a thread of gRPC.
  TokenGuard(std::unique_ptr<TokenFile> tokens, std::function<void()> on_refused)
      : tokens_(std::move(tokens)), on_refused_(std::move(on_refused)) {}

  // Errors: UNAUTHENTICATED.
  grpc::Status Check(const InputMetadata& metadata) const;

  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext*, OutputMetadata*, OutputMetadata*) override {
    return Check(metadata);
  }

 private:
  const std::unique_ptr<TokenFile> tokens_;
  const std::function<void()> on_refused_;
};

// Plain text with a guard: gRPC's own insecure credentials take no processor. `guard` may be null.
std::shared_ptr<grpc::ServerCredentials> PlainCredentials(std::shared_ptr<TokenGuard> guard);

}  // namespace gemmd

#endif  // GEMMD_SERVER_TOKEN_GUARD_H_
