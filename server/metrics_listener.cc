// SPDX-License-Identifier: Apache-2.0
#include "server/metrics_listener.h"

#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <atomic>
#include <civetweb.h>
#include <iterator>
#include <netdb.h>
#include <sched.h>
#include <sys/socket.h>
#include <thread>
#include <utility>

namespace gemmd {
namespace {

// One scrape at a time is usual; the second thread serves a person who looks.
constexpr char kThreads[] = "2";
// A client that neither sends its request nor reads its answer holds one of the threads no longer than this.
constexpr char kTimeoutMillis[] = "5000";
// The library's thread that accepts connections looks every two seconds whether it is to stop, or when one comes. So
// one comes, again and again, since nobody says when it has begun to stop.
constexpr absl::Duration kKnockInterval = absl::Milliseconds(5);

constexpr char kMetricsPath[] = "/metrics";
constexpr char kMetricsType[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr char kTextType[] = "text/plain; charset=utf-8";

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

struct Response {
  int code = 200;
  absl::string_view reason = "OK";
  absl::string_view content_type = kTextType;
  std::string body;
};

// The headers let a browser run, load and keep nothing.
void Send(mg_connection* connection, const Response& response) {
  const std::string head = absl::StrCat(
      "HTTP/1.1 ", response.code, " ", response.reason, "\r\nContent-Type: ", response.content_type,
      "\r\nContent-Length: ", response.body.size(), response.code == 405 ? "\r\nAllow: GET" : "",
      "\r\nCache-Control: no-store\r\nContent-Security-Policy: default-src 'none'; style-src 'unsafe-inline'"
      "\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n");
  // The caller may be gone; nobody is left to tell then.
  if (mg_write(connection, head.data(), head.size()) <= 0) return;
  if (!response.body.empty()) mg_write(connection, response.body.data(), response.body.size());
}

bool FromThisMachine(const mg_request_info& request) {
  absl::string_view address = request.remote_addr;
  if (absl::StartsWith(address, "::ffff:")) address.remove_prefix(7);
  return absl::StartsWith(address, "127.") || address == "::1";
}

// A page takes about a millisecond of a core, ten times as long as a small request, which must not wait for it: the
// listener's threads run when nothing else wants the core.
void* GiveWay(const mg_context*, int) {
  const sched_param none{};
  sched_setscheduler(0, SCHED_IDLE, &none);  // Of this thread alone, on Linux.
  return nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    absl::string_view address, std::vector<std::shared_ptr<prometheus::Collectable>> sources,
    std::vector<HttpPage> pages) {
  std::unique_ptr<MetricsListener> listener(new MetricsListener(std::move(sources), std::move(pages)));
  if (absl::Status status = listener->Listen(address); !status.ok()) return status;
  return listener;
}

MetricsListener::MetricsListener(std::vector<std::shared_ptr<prometheus::Collectable>> sources,
                                 std::vector<HttpPage> pages)
    : sources_(std::move(sources)), pages_(std::move(pages)) {
  pages_.push_back({kMetricsPath, kMetricsType, false, [this] { return Metrics(); }});
}

absl::Status MetricsListener::Listen(absl::string_view address) {
  mg_init_library(0);
  const std::string port(address);
  // Without files and without answers to CORS preflights of its own: every request comes to OnRequest.
  const char* options[] = {"listening_ports",
                           port.c_str(),
                           "num_threads",
                           kThreads,
                           "request_timeout_ms",
                           kTimeoutMillis,
                           "access_control_allow_origin",
                           "",
                           "access_control_allow_methods",
                           "",
                           nullptr};
  mg_callbacks callbacks{};
  callbacks.begin_request = OnRequest;
  callbacks.init_thread = GiveWay;
  char text[256] = {};
  unsigned code = 0;
  mg_init_data start{&callbacks, this, options};
  mg_error_data error{&code, text, sizeof(text)};
  server_ = mg_start2(&start, &error);
  mg_server_port ports[1] = {};
  if (server_ == nullptr || mg_get_server_ports(server_, 1, ports) < 1) {
    return absl::UnavailableError(
        absl::StrCat("--metrics_listen: ", address, " cannot be used", text[0] == '\0' ? "" : ": ", text));
  }
  address_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", ports[0].port);
  return absl::OkStatus();
}

int MetricsListener::OnRequest(mg_connection* connection) {
  static_cast<const MetricsListener*>(mg_get_user_data(mg_get_context(connection)))->Answer(connection);
  return 200;  // Anything but 0: it is answered.
}

void MetricsListener::Answer(mg_connection* connection) const {
  const mg_request_info& request = *mg_get_request_info(connection);
  if (absl::string_view(request.request_method) != "GET") {
    return Send(connection, {.code = 405, .reason = "Method Not Allowed", .body = "expected GET\n"});
  }
  // None for the address of another server.
  const absl::string_view path = request.local_uri == nullptr ? "" : request.local_uri;
  const auto page = std::find_if(pages_.begin(), pages_.end(), [path](const HttpPage& p) { return p.path == path; });
  if (page == pages_.end()) {
    return Send(connection, {.code = 404, .reason = "Not Found", .body = "no such page; / lists them\n"});
  }
  if (page->local_only && !FromThisMachine(request)) {
    return Send(connection, {.code = 403,
                             .reason = "Forbidden",
                             .body = "this page is for the machine itself (gemmd --remote_debug_pages)\n"});
  }
  Send(connection, {.content_type = page->content_type, .body = page->body()});
}

std::string MetricsListener::Metrics() const {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& source : sources_) {
    std::vector<prometheus::MetricFamily> collected = source->Collect();
    std::move(collected.begin(), collected.end(), std::back_inserter(families));
  }
  return prometheus::TextSerializer().Serialize(families);
}

MetricsListener::~MetricsListener() {
  if (server_ != nullptr) {
    std::atomic<bool> stopped{false};
    std::thread waker([this, &stopped] {
      while (!stopped.load()) {
        Knock(address_);
        absl::SleepFor(kKnockInterval);
      }
    });
    mg_stop(server_);
    stopped = true;
    waker.join();
  }
  mg_exit_library();
}

}  // namespace gemmd
