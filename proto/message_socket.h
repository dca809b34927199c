// SPDX-License-Identifier: Apache-2.0
// Messages with descriptors over a Unix SOCK_SEQPACKET socket: one plain struct, optionally followed by bytes, and at
// most one descriptor per message. Used by the broker (client to front end) and the control socket (front end to
// worker).
#ifndef GEMMD_PROTO_MESSAGE_SOCKET_H_
#define GEMMD_PROTO_MESSAGE_SOCKET_H_

#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace gemmd {

// Longest message on either socket.
inline constexpr size_t kMaxSocketMessage = 4096;

struct ReceivedMessage {
  std::string bytes;
  UniqueFd fd;               // Invalid if the message carried none. Close-on-exec.
  int descriptor_count = 0;  // How many came; those beyond the first were closed at once.
};

// Sends one message; waits if the socket's buffer is full. Never raises SIGPIPE.
// Errors: UNAVAILABLE if the peer is gone, RESOURCE_EXHAUSTED if a non-blocking socket's buffer is full,
// INVALID_ARGUMENT if the message is empty or too long.
absl::Status SendMessage(int socket, absl::Span<const std::byte> bytes, int fd = -1);

// Receives one message; waits for it unless the socket is non-blocking.
// Errors: UNAVAILABLE at end of file, DEADLINE_EXCEEDED if a non-blocking socket has none, INVALID_ARGUMENT if the
// message is longer than kMaxSocketMessage (it is consumed, its descriptors closed).
absl::StatusOr<ReceivedMessage> ReceiveMessage(int socket);

template <typename T>
requires std::is_trivially_copyable_v<T> absl::Status SendStruct(int socket, const T& message, int fd = -1) {
  return SendMessage(socket, absl::MakeConstSpan(reinterpret_cast<const std::byte*>(&message), sizeof(T)), fd);
}

}  // namespace gemmd

#endif  // GEMMD_PROTO_MESSAGE_SOCKET_H_
