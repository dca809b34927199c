// SPDX-License-Identifier: Apache-2.0
// TLS on the HOST:PORT listeners: whether the files can be used, and the credentials that follow them. Used by
// server/listeners.cc.
#ifndef GEMMD_SERVER_TLS_H_
#define GEMMD_SERVER_TLS_H_

#include "server/options.h"

#include "absl/status/status.h"
#include <grpcpp/security/server_credentials.h>

#include <memory>

namespace gemmd {

// Whether gRPC can serve with these files, which it says itself only by failing handshakes. Errors: INVALID_ARGUMENT,
// naming the flag and the file.
absl::Status CheckTlsFiles(const TlsFiles& tls);

// Credentials that read the files again when they change. What cannot be used then is left, and the last good files
// stay. Requires: CheckTlsFiles.
std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsFiles& tls);

}  // namespace gemmd

#endif  // GEMMD_SERVER_TLS_H_
