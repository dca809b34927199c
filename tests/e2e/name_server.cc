// SPDX-License-Identifier: Apache-2.0
#include "tests/e2e/name_server.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstdint>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <utility>

namespace gemmd::testing {
namespace {

// RFC 1035, section 4.1.
constexpr size_t kHeaderBytes = 12;
constexpr size_t kMaxMessageBytes = 512;
constexpr uint16_t kTypeA = 1;
constexpr timeval kLookAtStop = {.tv_sec = 0, .tv_usec = 20'000};

std::string Big16(size_t value) {
  return {static_cast<char>(static_cast<unsigned char>(value >> 8)), static_cast<char>(value & 0xff)};
}

// Where the question ends, which follows the header: a name of labels, a type and a class. 0: there is none.
size_t EndOfQuestion(const std::string& query) {
  size_t at = kHeaderBytes;
  while (at < query.size() && query[at] != 0) at += static_cast<unsigned char>(query[at]) + size_t{1};
  const size_t end = at + 5;
  return end <= query.size() ? end : 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NameServer>> NameServer::Start() {
  UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {.sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  socklen_t length = sizeof(address);
  if (!socket.valid() || bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &kLookAtStop, sizeof(kLookAtStop)) != 0) {
    return absl::ErrnoToStatus(errno, "name server");
  }
  std::unique_ptr<NameServer> server(new NameServer(std::move(socket)));
  server->address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  server->thread_ = std::thread([raw = server.get()] { raw->Serve(); });
  return server;
}

NameServer::~NameServer() {
  stop_.store(true);
  thread_.join();
}

void NameServer::SetAddresses(std::vector<std::string> addresses) {
  const absl::MutexLock lock(&mutex_);
  addresses_ = std::move(addresses);
}

void NameServer::Serve() {
  while (!stop_.load()) {
    std::string query(kMaxMessageBytes, '\0');
    sockaddr_in from{};
    socklen_t length = sizeof(from);
    const ssize_t size =
        recvfrom(socket_.get(), query.data(), query.size(), 0, reinterpret_cast<sockaddr*>(&from), &length);
    if (size < 0) continue;
    query.resize(static_cast<size_t>(size));
    const std::string answer = Answer(query);
    if (answer.empty()) continue;
    sendto(socket_.get(), answer.data(), answer.size(), 0, reinterpret_cast<const sockaddr*>(&from), length);
  }
}

std::string NameServer::Answer(const std::string& query) {
  const size_t end = EndOfQuestion(query);
  if (end == 0) return "";
  std::vector<std::string> addresses;
  if (query.substr(end - 4, 2) == Big16(kTypeA)) {
    const absl::MutexLock lock(&mutex_);
    addresses = addresses_;
  }
  // An answer with authority and without recursion; one question, which is repeated, and the answers to it.
  std::string answer = absl::StrCat(query.substr(0, 2), std::string("\x84\x00", 2), Big16(1), Big16(addresses.size()),
                                    std::string(4, '\0'), query.substr(kHeaderBytes, end - kHeaderBytes));
  for (const std::string& text : addresses) {
    in_addr address{};
    if (inet_pton(AF_INET, text.c_str(), &address) != 1) continue;
    // The name of the question, A, IN, to be kept for 0 seconds, 4 bytes.
    absl::StrAppend(&answer, std::string("\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04", 12),
                    std::string(reinterpret_cast<const char*>(&address), sizeof(address)));
  }
  return answer;
}

}  // namespace gemmd::testing
