// SPDX-License-Identifier: Apache-2.0
// The HTTP listener that Prometheus scrapes and people look at: GET of /metrics and of the pages it is given, nothing
// else. Made in server/daemon.cc; its threads call what was registered.
#ifndef GEMMD_SERVER_METRICS_LISTENER_H_
#define GEMMD_SERVER_METRICS_LISTENER_H_

#include "server/http_page.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include <prometheus/collectable.h>

#include <memory>
#include <string>
#include <vector>

struct mg_connection;
struct mg_context;

namespace gemmd {

class MetricsListener {
 public:
  // `address`: HOST:PORT; port 0 takes a free one. Errors: UNAVAILABLE (the address cannot be used).
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      absl::string_view address, std::vector<std::shared_ptr<prometheus::Collectable>> sources,
      std::vector<HttpPage> pages = {});
  // Takes some milliseconds.
  ~MetricsListener();
  MetricsListener(const MetricsListener&) = delete;
  MetricsListener& operator=(const MetricsListener&) = delete;

  // HOST:PORT with the port that is really used.
  const std::string& address() const { return address_; }

 private:
  MetricsListener(std::vector<std::shared_ptr<prometheus::Collectable>> sources, std::vector<HttpPage> pages);

  absl::Status Listen(absl::string_view address);
  static int OnRequest(mg_connection* connection);
  void Answer(mg_connection* connection) const;
  std::string Metrics() const;

  const std::vector<std::shared_ptr<prometheus::Collectable>> sources_;
  std::vector<HttpPage> pages_;
  mg_context* server_ = nullptr;
  std::string address_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_METRICS_LISTENER_H_
