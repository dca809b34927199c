// SPDX-License-Identifier: Apache-2.0
// grpc.health.v1.Health.Check, which Debian packages no generated client for: two messages of one field each, written
// and read here by hand.
#ifndef GEMMD_CLIENT_HEALTH_H_
#define GEMMD_CLIENT_HEALTH_H_

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include <grpcpp/channel.h>

#include <memory>
#include <string>

namespace gemmd {

// "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN" of a service; "" is the daemon as a whole.
// Errors: UNAVAILABLE (nobody there), DEADLINE_EXCEEDED, NOT_FOUND (no such service).
absl::StatusOr<std::string> CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
                                        absl::Duration timeout);

// Asks again until it is SERVING. Errors: DEADLINE_EXCEEDED with what the last answer was.
absl::Status WaitUntilServing(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
                              absl::Duration timeout);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_HEALTH_H_
