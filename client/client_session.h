// SPDX-License-Identifier: Apache-2.0
// The client's side of a session: credentials for gRPC calls, and the connection whose end closes the session. Owned by
// Client and by each region, so that a session lives as long as anything that uses it. Thread-safe.
#ifndef GEMMD_CLIENT_CLIENT_SESSION_H_
#define GEMMD_CLIENT_CLIENT_SESSION_H_

#include "gemmd/v1/sessions.grpc.pb.h"
#include "proto/broker.h"
#include "proto/gpu_memory.h"
#include "proto/shared_memory.h"
#include "proto/unique_fd.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <cstdint>
#include <memory>
#include <string>

namespace gemmd {

class SessionStream;

struct SessionOptions {
  std::string client_name;
  std::string token;  // Bearer token; empty: none.
  absl::Duration timeout = absl::Seconds(5);
};

// Memory of gemmd for this client to map.
struct CreatedPool {
  uint64_t region_id = 0;
  std::string device;  // GPU UUID: `fd` is of a CUDA allocation. "cpu": of a sealed memfd.
  UniqueFd fd;
};

class ClientSession {
 public:
  // Credentials only: calls without a session may use inline operands.
  static std::shared_ptr<ClientSession> Anonymous(const SessionOptions& options);

  // Through the broker at `socket_path`. Errors: UNAVAILABLE (nobody there), DEADLINE_EXCEEDED, and what the broker
  // says.
  static absl::StatusOr<std::shared_ptr<ClientSession>> OpenAtBroker(const std::string& socket_path,
                                                                     const SessionOptions& options);

  // Through Sessions.Open on the channel. Errors: as above.
  static absl::StatusOr<std::shared_ptr<ClientSession>> OpenOnChannel(const std::shared_ptr<grpc::Channel>& channel,
                                                                      const SessionOptions& options);

  ClientSession(const ClientSession&) = delete;
  ClientSession& operator=(const ClientSession&) = delete;
  // Closes the session: the daemon frees everything that it owns.
  ~ClientSession();

  // Adds the session's metadata and the token to a call.
  void Authorize(grpc::ClientContext* context) const;

  // Registers sealed memory; gives the region's id. Errors: FAILED_PRECONDITION if the session has no broker, and what
  // the broker says.
  absl::StatusOr<uint64_t> RegisterHost(int fd, uint64_t byte_size, Access access);

  // Registers memory of the GPU `gpu` (UUID): by the descriptor of a CUDA allocation, or by a legacy handle.
  // Errors: as RegisterHost.
  absl::StatusOr<uint64_t> RegisterDevice(int fd, uint64_t byte_size, Access access, absl::string_view gpu);
  absl::StatusOr<uint64_t> RegisterDeviceIpc(const IpcMemory& ipc, uint64_t byte_size, Access access,
                                             absl::string_view gpu);

  // Has gemmd allocate memory on `device` (UUID, "cpu", or empty: the one with most room). Errors: as RegisterHost.
  absl::StatusOr<CreatedPool> CreatePool(uint64_t byte_size, absl::string_view device);

  // Errors: as RegisterHost.
  absl::Status CloseRegion(uint64_t region_id);

  uint64_t id() const { return id_; }
  bool has_broker() const { return has_broker_; }

 private:
  explicit ClientSession(const SessionOptions& options);

  struct Answer {
    BrokerReply reply;
    UniqueFd fd;
  };

  // One request and its reply. A broken conversation closes the socket, since replies would no longer match.
  absl::StatusOr<Answer> Ask(const BrokerRequest& request, int fd);
  absl::StatusOr<uint64_t> Register(const BrokerRequest& request, int fd);

  const std::string token_;
  uint64_t id_ = 0;
  std::string id_text_;
  std::string secret_;  // Hex digits; empty without a session.
  bool has_broker_ = false;
  std::unique_ptr<SessionStream> stream_;
  absl::Mutex mutex_;
  UniqueFd socket_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_CLIENT_SESSION_H_
