// SPDX-License-Identifier: Apache-2.0
#include "server/authenticator.h"

#include "proto/broker.h"

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"

#include <cstdint>
#include <iterator>

namespace gemmd {
namespace {

absl::string_view View(const grpc::string_ref& text) { return absl::string_view(text.data(), text.size()); }

}  // namespace

absl::StatusOr<std::shared_ptr<Session>> Authenticator::Authenticate(const grpc::CallbackServerContext& context) const {
  const auto& metadata = context.client_metadata();
  const auto [id_begin, id_end] = metadata.equal_range(kSessionMetadata);
  const auto [secret_begin, secret_end] = metadata.equal_range(kSecretMetadata);
  const auto ids = std::distance(id_begin, id_end);
  const auto secrets = std::distance(secret_begin, secret_end);
  if (ids == 0 && secrets == 0) return sessions_.anonymous();
  if (ids != 1 || secrets != 1) {
    return absl::UnauthenticatedError("session: expected gemmd-session and gemmd-secret once each");
  }
  uint64_t id = 0;
  if (!absl::SimpleAtoi(View(id_begin->second), &id)) id = 0;  // No session has this id.
  return sessions_.Authenticate(id, View(secret_begin->second));
}

absl::StatusOr<std::shared_ptr<Session>> Authenticator::RequireSession(
    const grpc::CallbackServerContext& context) const {
  absl::StatusOr<std::shared_ptr<Session>> session = Authenticate(context);
  if (session.ok() && (*session)->anonymous()) {
    return absl::UnauthenticatedError("session: this call needs one, see gemmd.v1.Sessions");
  }
  return session;
}

}  // namespace gemmd
