// SPDX-License-Identifier: Apache-2.0
// The HTTP listener that Prometheus scrapes: GET /metrics and nothing else. Made in server/daemon.cc; its threads call
// what was registered.
#ifndef GEMMD_SERVER_METRICS_LISTENER_H_
#define GEMMD_SERVER_METRICS_LISTENER_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include <prometheus/collectable.h>

#include <memory>
#include <string>
#include <vector>

namespace prometheus {
class Exposer;
}

namespace gemmd {

class MetricsListener {
 public:
  // `address`: HOST:PORT; port 0 takes a free one. Errors: UNAVAILABLE (the address cannot be used).
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      absl::string_view address, std::vector<std::shared_ptr<prometheus::Collectable>> sources);
  // Takes some milliseconds.
  ~MetricsListener();
  MetricsListener(const MetricsListener&) = delete;
  MetricsListener& operator=(const MetricsListener&) = delete;

  // HOST:PORT with the port that is really used.
  const std::string& address() const { return address_; }

 private:
  MetricsListener(std::unique_ptr<prometheus::Exposer> exposer, std::string address,
                  std::vector<std::shared_ptr<prometheus::Collectable>> sources);

  const std::vector<std::shared_ptr<prometheus::Collectable>> sources_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  const std::string address_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_METRICS_LISTENER_H_
