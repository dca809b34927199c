// SPDX-License-Identifier: Apache-2.0
// The broker: a Unix SOCK_SEQPACKET listener beside the gRPC socket, where processes of this machine open sessions and
// pass descriptors (messages: proto/broker.h). The kernel says who the peer is; end of file is its death notice.
//
// One thread serves all connections. A connection has at most one request under way: while the workers map or close a
// region, the rest of its requests wait in the socket, so replies come in order.
#ifndef GEMMD_SERVER_BROKER_H_
#define GEMMD_SERVER_BROKER_H_

#include "server/quotas.h"
#include "server/region_registry.h"
#include "server/session_registry.h"

#include "absl/status/statusor.h"

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <sys/types.h>
#include <thread>
#include <vector>

namespace gemmd {

class BrokerLoop;  // Defined in the source: what the thread runs.

struct BrokerOptions {
  std::string path;                                // At most 107 bytes, as for every Unix socket. Mode 0660.
  std::optional<std::vector<uid_t>> allowed_uids;  // Unset: everybody whom the mode of the socket lets in.
  Quotas quotas;
};

class Broker {
 public:
  // Listens and starts the thread. A socket file that nobody listens on is replaced. The registries must outlive the
  // broker. Errors: INVALID_ARGUMENT (path), ALREADY_EXISTS (somebody listens there, or it is not a socket), and
  // errno's.
  static absl::StatusOr<std::unique_ptr<Broker>> Start(BrokerOptions options, SessionRegistry& sessions,
                                                       RegionRegistry& regions);

  // Ends all sessions of the broker, stops the thread and removes the socket file.
  ~Broker();
  Broker(const Broker&) = delete;
  Broker& operator=(const Broker&) = delete;

  // Open connections. Any thread.
  size_t connections() const;

 private:
  explicit Broker(std::unique_ptr<BrokerLoop> loop);

  const std::unique_ptr<BrokerLoop> loop_;
  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_BROKER_H_
