// SPDX-License-Identifier: Apache-2.0
// Messages of the broker, a SOCK_SEQPACKET Unix socket beside the gRPC one (same path with ".broker" appended). The
// first request must be kHello; one reply answers each request, in order. The session ends with the connection, and
// with it everything that it owns.
#ifndef GEMMD_PROTO_BROKER_H_
#define GEMMD_PROTO_BROKER_H_

#include "proto/gpu_memory.h"

#include <cstdint>
#include <type_traits>

namespace gemmd {

inline constexpr uint32_t kBrokerVersion = 2;
inline constexpr char kBrokerSuffix[] = ".broker";
inline constexpr int kSecretBytes = 16;
inline constexpr int kClientNameBytes = 64;

// gRPC metadata of calls that belong to a session.
inline constexpr char kSessionMetadata[] = "gemmd-session";  // Decimal id.
inline constexpr char kSecretMetadata[] = "gemmd-secret";    // 32 hex digits.

enum class BrokerRequestType : uint32_t {
  kHello = 1,              // version, client_name. Reply: session id and secret.
  kRegisterHost = 2,       // byte_size, writable, and a sealed memfd. Reply: region id.
  kCloseRegion = 3,        // region_id.
  kRegisterDevice = 4,     // byte_size, writable, gpu, and the descriptor of a CUDA allocation (cuMemCreate, exported
                           // as a POSIX file descriptor). Reply: region id.
  kRegisterDeviceIpc = 5,  // byte_size, writable, gpu, ipc. Reply: region id.
  kCreatePool = 6,         // byte_size, and gpu or nothing for the device with most room. Reply: region id, gpu, and
                           // the descriptor: of a CUDA allocation, or of a sealed memfd if gpu is "cpu".
};

struct BrokerRequest {
  BrokerRequestType type = BrokerRequestType::kHello;
  uint32_t version = kBrokerVersion;
  uint64_t byte_size = 0;
  uint64_t region_id = 0;
  uint32_t writable = 0;  // 0 or 1.
  uint32_t reserved = 0;
  char client_name[kClientNameBytes] = {};  // NUL-terminated, printable.
  char gpu[kGpuUuidBytes] = {};             // UUID, NUL-terminated.
  IpcMemory ipc;
};
static_assert(sizeof(BrokerRequest) == 240 && std::is_trivially_copyable_v<BrokerRequest>);

// `code` is an absl::StatusCode; `message` says what was wrong, NUL-terminated.
struct BrokerReply {
  uint32_t code = 0;
  uint32_t version = kBrokerVersion;
  uint64_t session_id = 0;
  uint64_t region_id = 0;
  uint8_t secret[kSecretBytes] = {};
  char message[256] = {};
  char gpu[kGpuUuidBytes] = {};  // kCreatePool: where the memory is.
};
static_assert(sizeof(BrokerReply) == 344 && std::is_trivially_copyable_v<BrokerReply>);

}  // namespace gemmd

#endif  // GEMMD_PROTO_BROKER_H_
