// SPDX-License-Identifier: Apache-2.0
#include "server/metrics_listener.h"

#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <prometheus/exposer.h>

#include <atomic>
#include <exception>
#include <netdb.h>
#include <sched.h>
#include <sys/socket.h>
#include <thread>
#include <utility>

namespace gemmd {
namespace {

// One scrape at a time is usual; the second thread serves a person who looks.
constexpr size_t kThreads = 2;
// The library's thread that accepts connections looks every two seconds whether it is to stop, or when one comes. So
// one comes, again and again, since nobody says when it has begun to stop.
constexpr absl::Duration kKnockInterval = absl::Milliseconds(5);

// Connects and closes; whether that worked shows in that the listener stops.
void Knock(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) return;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const UniqueFd socket(::socket(entry->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    (void)!connect(socket.get(), entry->ai_addr, entry->ai_addrlen);
  }
  freeaddrinfo(found);
}

// A page takes about a millisecond of a core, ten times as long as a small request, which must not wait for it: the
// listener's threads run when nothing else wants the core. They inherit that from the thread that makes them.
std::unique_ptr<prometheus::Exposer> MakeExposer(const std::string& address) {
  std::unique_ptr<prometheus::Exposer> exposer;
  std::exception_ptr failure;
  std::thread maker([&] {
    const sched_param none{};
    sched_setscheduler(0, SCHED_IDLE, &none);  // Of this thread alone, on Linux.
    try {
      exposer = std::make_unique<prometheus::Exposer>(address, kThreads);
    } catch (...) {
      failure = std::current_exception();
    }
  });
  maker.join();
  if (failure) std::rethrow_exception(failure);
  return exposer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    absl::string_view address, std::vector<std::shared_ptr<prometheus::Collectable>> sources) {
  // The library reports failures by exceptions; they end here.
  try {
    std::unique_ptr<prometheus::Exposer> exposer = MakeExposer(std::string(address));
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

MetricsListener::~MetricsListener() {
  std::atomic<bool> stopped{false};
  std::thread waker([this, &stopped] {
    while (!stopped.load()) {
      Knock(address_);
      absl::SleepFor(kKnockInterval);
    }
  });
  exposer_.reset();
  stopped = true;
  waker.join();
}

}  // namespace gemmd
