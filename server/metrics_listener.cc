// SPDX-License-Identifier: Apache-2.0
#include "server/metrics_listener.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include <prometheus/exposer.h>

#include <exception>
#include <utility>

namespace gemmd {
namespace {

// One scrape at a time is usual; the second thread serves a person who looks.
constexpr size_t kThreads = 2;

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    absl::string_view address, std::vector<std::shared_ptr<prometheus::Collectable>> sources) {
  // The library reports failures by exceptions; they end here.
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(std::string(address), kThreads);
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (ports.empty()) return absl::UnavailableError(absl::StrCat("--metrics_listen: ", address, " cannot be used"));
    std::string real = absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[0]);
    return std::unique_ptr<MetricsListener>(
        new MetricsListener(std::move(exposer), std::move(real), std::move(sources)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("--metrics_listen: ", address, " cannot be used: ", error.what()));
  }
}

MetricsListener::MetricsListener(std::unique_ptr<prometheus::Exposer> exposer, std::string address,
                                 std::vector<std::shared_ptr<prometheus::Collectable>> sources)
    : sources_(std::move(sources)), exposer_(std::move(exposer)), address_(std::move(address)) {
  for (const auto& source : sources_) exposer_->RegisterCollectable(source);
}

MetricsListener::~MetricsListener() = default;

}  // namespace gemmd
