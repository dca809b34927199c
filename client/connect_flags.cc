// SPDX-License-Identifier: Apache-2.0
#include "client/connect_flags.h"

#include "client/stored_array.h"
#include "proto/bearer_token.h"

#include "absl/flags/flag.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include <utility>
#include <vector>

ABSL_FLAG(std::string, server, "unix:/run/gemmd/gemmd.sock", "Address of gemmd: unix:/path or host:port.");
ABSL_FLAG(bool, tls, false, "host:port only: use TLS, with the system's certificate authorities.");
ABSL_FLAG(std::string, tls_ca, "", "With --tls: file of the certificate authorities to trust instead (PEM).");
ABSL_FLAG(std::string, tls_cert, "", "With --tls and --tls_key: file of this client's certificate (PEM).");
ABSL_FLAG(std::string, tls_key, "", "With --tls and --tls_cert: file of this client's private key (PEM).");
ABSL_FLAG(std::string, token_file, "",
          "host:port only: file with the bearer token to present; over TLS, or who listens learns it.");

namespace gemmd {
namespace {

absl::Status CheckTlsFlags(const std::string& server) {
  const bool cert = !absl::GetFlag(FLAGS_tls_cert).empty();
  const bool key = !absl::GetFlag(FLAGS_tls_key).empty();
  if (cert != key) return absl::InvalidArgumentError("--tls_cert and --tls_key: expected both or none");
  if (absl::GetFlag(FLAGS_tls)) {
    if (!absl::StartsWith(server, "unix:")) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("--tls: expected a host:port in --server, got ", server));
  }
  if (cert) return absl::InvalidArgumentError("--tls_cert: expected --tls with it");
  if (!absl::GetFlag(FLAGS_tls_ca).empty()) return absl::InvalidArgumentError("--tls_ca: expected --tls with it");
  return absl::OkStatus();
}

absl::Status ReadInto(const std::string& path, std::string* content) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> bytes = ReadFile(path);
  if (!bytes.ok()) return bytes.status();
  *content = *std::move(bytes);
  return absl::OkStatus();
}

// The format is the daemon's, but only one token can be presented.
absl::Status ReadToken(const std::string& path, std::string* token) {
  if (path.empty()) return absl::OkStatus();
  std::string text;
  if (absl::Status status = ReadInto(path, &text); !status.ok()) return status;
  absl::StatusOr<std::vector<std::string>> tokens = ParseTokens(text);
  if (!tokens.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--token_file: ", path, ": ", tokens.status().message()));
  }
  if (tokens->size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token_file: ", path, ": expected one token, got ", tokens->size()));
  }
  *token = std::move(tokens->front());
  return absl::OkStatus();
}

}  // namespace

void DescribeProgram(absl::string_view usage, absl::string_view main_file) {
  absl::SetProgramUsageMessage(usage);
  absl::FlagsUsageConfig config;
  const std::string file(main_file);
  config.contains_help_flags = [file](absl::string_view defined_in) {
    return defined_in == file || defined_in == __FILE__;
  };
  absl::SetFlagsUsageConfig(config);
}

absl::StatusOr<ServerToConnect> ServerFromFlags(const std::string& client_name) {
  ServerToConnect server;
  server.address = absl::GetFlag(FLAGS_server);
  server.options.client_name = client_name;
  server.options.tls = absl::GetFlag(FLAGS_tls);
  absl::Status status = CheckTlsFlags(server.address);
  status.Update(ReadInto(absl::GetFlag(FLAGS_tls_ca), &server.options.tls_root_certificates));
  status.Update(ReadInto(absl::GetFlag(FLAGS_tls_cert), &server.options.tls_certificate));
  status.Update(ReadInto(absl::GetFlag(FLAGS_tls_key), &server.options.tls_key));
  status.Update(ReadToken(absl::GetFlag(FLAGS_token_file), &server.options.token));
  if (!status.ok()) return status;
  return server;
}

}  // namespace gemmd
