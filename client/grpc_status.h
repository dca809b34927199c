// SPDX-License-Identifier: Apache-2.0
// From gRPC's status to absl's: the codes have the same numbers, the message stays as the daemon wrote it.
#ifndef GEMMD_CLIENT_GRPC_STATUS_H_
#define GEMMD_CLIENT_GRPC_STATUS_H_

#include "absl/status/status.h"
#include <grpcpp/support/status.h>

namespace gemmd {

inline absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace gemmd

#endif  // GEMMD_CLIENT_GRPC_STATUS_H_
