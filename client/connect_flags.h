// SPDX-License-Identifier: Apache-2.0
// The flags by which gemmctl and gemmload find gemmd and say who asks: --server, --tls, --tls_ca, --tls_cert, --tls_key
// and --token_file. Linked to programs only.
#ifndef GEMMD_CLIENT_CONNECT_FLAGS_H_
#define GEMMD_CLIENT_CONNECT_FLAGS_H_

#include "client/client.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <string>

namespace gemmd {

// Before flags are parsed: `usage` goes before the flags in --help, which lists those of `main_file` (its __FILE__) and
// the ones of this file, and none of a library.
void DescribeProgram(absl::string_view usage, absl::string_view main_file);

struct ServerToConnect {
  std::string address;
  ConnectOptions options;
};

// `client_name`: of the program. Reads the files. Errors: INVALID_ARGUMENT (flags that contradict each other), and
// those of reading a file.
absl::StatusOr<ServerToConnect> ServerFromFlags(const std::string& client_name);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_CONNECT_FLAGS_H_
