// SPDX-License-Identifier: Apache-2.0
#include "server/listeners.h"

#include "proto/unique_fd.h"
#include "server/tls.h"

#include "absl/strings/str_cat.h"
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

// A client process that is stopped or cut off is noticed within half a minute.
constexpr int kKeepaliveMillis = 20'000;
constexpr int kKeepaliveTimeoutMillis = 10'000;
// A client may ping this often; one that does more is told to go.
constexpr int kMinPingIntervalMillis = 5'000;
// What a response needs beside its inline result.
constexpr int64_t kResponseOverhead = 64 << 10;

bool SomebodyListens(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

std::shared_ptr<grpc::ServerCredentials> TcpCredentials(const TlsFiles& tls, std::shared_ptr<TokenGuard> guard) {
  if (tls.empty()) return PlainCredentials(std::move(guard));
  std::shared_ptr<grpc::ServerCredentials> credentials = TlsCredentials(tls);
  if (guard != nullptr) credentials->SetAuthMetadataProcessor(std::move(guard));
  return credentials;
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes + kResponseOverhead));
  // A compressed message costs its sender nothing and us memory: refused.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMillis);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMillis);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMillis);
  if (options.max_connection_age != absl::InfiniteDuration()) {
    const int64_t age = std::min<int64_t>(absl::ToInt64Milliseconds(options.max_connection_age), INT_MAX);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, static_cast<int>(age));
  }
  // A second daemon on the same port is an error, not a share of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  grpc::ResourceQuota quota("gemmd");
  quota.Resize(static_cast<size_t>(options.grpc_memory_bytes));
  builder.SetResourceQuota(quota);
}

std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

}  // namespace

absl::Status PrepareSocketPath(const std::string& path) {
  const std::string directory = path.substr(0, path.rfind('/'));
  if (!directory.empty() && mkdir(directory.c_str(), 0750) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", directory));
  }
  struct stat found {};
  if (lstat(path.c_str(), &found) != 0) return absl::OkStatus();
  if (!S_ISSOCK(found.st_mode)) return absl::AlreadyExistsError(absl::StrCat(path, " is not a socket"));
  if (SomebodyListens(path)) return absl::AlreadyExistsError(absl::StrCat("gemmd is already running on ", path));
  if (unlink(path.c_str()) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", path));
  return absl::OkStatus();
}

absl::StatusOr<RunningServer> StartServer(const ServerOptions& options, absl::Span<grpc::Service* const> services,
                                          std::shared_ptr<TokenGuard> guard) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  const std::string unix_address = absl::StrCat("unix:", options.listen.unix_path);
  builder.AddListeningPort(unix_address, grpc::InsecureServerCredentials());
  std::vector<int> ports(options.listen.tcp.size());
  const auto tcp = TcpCredentials(options.tls, std::move(guard));
  for (size_t i = 0; i < ports.size(); ++i) builder.AddListeningPort(options.listen.tcp[i], tcp, &ports[i]);
  for (grpc::Service* service : services) builder.RegisterService(service);
  RunningServer running;
  running.server = builder.BuildAndStart();
  if (running.server == nullptr) return absl::UnavailableError("--listen: an address cannot be used");
  if (chmod(options.listen.unix_path.c_str(), 0660) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot set the mode of ", options.listen.unix_path));
  }
  running.addresses.push_back(unix_address);
  for (size_t i = 0; i < ports.size(); ++i) running.addresses.push_back(WithPort(options.listen.tcp[i], ports[i]));
  return running;
}

}  // namespace gemmd
