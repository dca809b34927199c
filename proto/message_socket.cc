// SPDX-License-Identifier: Apache-2.0
#include "proto/message_socket.h"

#include "absl/strings/str_cat.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/uio.h>
#include <utility>

namespace gemmd {
namespace {

// The kernel's own bound on descriptors in one message (SCM_MAX_FD). Room for all of them, so that none is left open
// by truncation.
constexpr size_t kMaxDescriptors = 253;

void TakeDescriptors(const msghdr& header, ReceivedMessage& message) {
  for (cmsghdr* control = CMSG_FIRSTHDR(&header); control != nullptr;
       control = CMSG_NXTHDR(const_cast<msghdr*>(&header), control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int raw = -1;
      std::memcpy(&raw, CMSG_DATA(control) + i * sizeof(int), sizeof(int));
      UniqueFd fd(raw);
      if (message.descriptor_count++ == 0) message.fd = std::move(fd);
    }
  }
}

}  // namespace

absl::Status SendMessage(int socket, absl::Span<const std::byte> bytes, int fd) {
  // An empty message would look like the end of file to its receiver.
  if (bytes.empty() || bytes.size() > kMaxSocketMessage) {
    return absl::InvalidArgumentError(
        absl::StrCat("message: expected 1 to ", kMaxSocketMessage, " bytes, got ", bytes.size()));
  }
  iovec vector{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return absl::OkStatus();
  if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::ResourceExhaustedError("the socket's buffer is full");
  if (errno == EPIPE || errno == ECONNRESET) return absl::UnavailableError("peer closed the socket");
  return absl::ErrnoToStatus(errno, "sendmsg");
}

absl::StatusOr<ReceivedMessage> ReceiveMessage(int socket) {
  ReceivedMessage message;
  message.bytes.resize(kMaxSocketMessage);
  iovec vector{message.bytes.data(), message.bytes.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxDescriptors * sizeof(int))> control{};
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t received = 0;
  // A peer that closed before it read our last message leaves this error in front of what it had sent before.
  bool was_reset = false;
  do {
    received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (received < 0 && (errno == EINTR || (errno == ECONNRESET && !std::exchange(was_reset, true))));
  if (received < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::DeadlineExceededError("no message");
    if (errno == ECONNRESET) return absl::UnavailableError("peer closed the socket");
    return absl::ErrnoToStatus(errno, "recvmsg");
  }
  TakeDescriptors(header, message);
  if (received == 0) return absl::UnavailableError("peer closed the socket");
  if ((header.msg_flags & MSG_TRUNC) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("message: expected at most ", kMaxSocketMessage, " bytes, got more"));
  }
  message.bytes.resize(static_cast<size_t>(received));
  return message;
}

}  // namespace gemmd
