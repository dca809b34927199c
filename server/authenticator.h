// SPDX-License-Identifier: Apache-2.0
// From a call's metadata (proto/broker.h: kSessionMetadata, kSecretMetadata) to its session. Used by every service,
// once per call, on reactor threads.
#ifndef GEMMD_SERVER_AUTHENTICATOR_H_
#define GEMMD_SERVER_AUTHENTICATOR_H_

#include "server/session.h"
#include "server/session_registry.h"

#include "absl/status/statusor.h"
#include <grpcpp/server_context.h>

#include <memory>

namespace gemmd {

// Thread-safe.
class Authenticator {
 public:
  // `sessions` must outlive the authenticator.
  explicit Authenticator(const SessionRegistry& sessions) : sessions_(sessions) {}

  // The session of a call, or the anonymous one if it carries no credentials at all. Errors: UNAUTHENTICATED (wrong,
  // incomplete or repeated credentials).
  absl::StatusOr<std::shared_ptr<Session>> Authenticate(const grpc::CallbackServerContext& context) const;

  // The same for calls that must belong to a session. Errors: UNAUTHENTICATED also without credentials.
  absl::StatusOr<std::shared_ptr<Session>> RequireSession(const grpc::CallbackServerContext& context) const;

 private:
  const SessionRegistry& sessions_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_AUTHENTICATOR_H_
