// SPDX-License-Identifier: Apache-2.0
// The broker's socket against a client that sends anything. Input: for each message one byte that says what to start
// from, one that says how long it is, and bytes that are XORed over it.
#include "proto/broker.h"

#include "proto/message_socket.h"
#include "server/broker.h"
#include "tests/fuzz/require.h"
#include "tests/server/service_fixture.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace gemmd {
namespace {

constexpr int kMaxMessages = 8;
constexpr uint64_t kPage = 4096;

struct World {
  World() { broker = *Broker::Start({.path = path, .allowed_uids = {}, .quotas = {}}, state.sessions, *state.regions); }

  TemporaryFolder folder;
  const std::string path = folder.path() + "/broker";
  FrontEndState state;
  const UniqueFd sealed = SealedMemory(kPage);
  const UniqueFd other{open("/dev/null", O_RDWR | O_CLOEXEC)};
  std::unique_ptr<Broker> broker;
};

UniqueFd Connect(const std::string& path) {
  UniqueFd connected(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  Require(connect(connected.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return connected;
}

// False once the broker has hung up.
bool Exchange(const World& world, int socket, uint8_t kind, absl::Span<const std::byte> message) {
  const int descriptors[] = {-1, world.sealed.get(), world.other.get(), -1};
  if (!SendMessage(socket, message, descriptors[kind / 8 % 4]).ok()) return false;
  const absl::StatusOr<ReceivedMessage> received = ReceiveMessage(socket);
  if (!received.ok()) return false;
  BrokerReply reply;
  Require(received->bytes.size() == sizeof(reply));
  std::memcpy(static_cast<void*>(&reply), received->bytes.data(), sizeof(reply));
  Require(reply.code <= 16 && reply.version == kBrokerVersion);
  Require(strnlen(reply.message, sizeof(reply.message)) < sizeof(reply.message));
  Require((reply.code == 0) == (reply.message[0] == '\0'));
  return true;
}

}  // namespace
}  // namespace gemmd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* const world = new gemmd::World;
  const gemmd::UniqueFd socket = gemmd::Connect(world->path);
  for (int i = 0; i < gemmd::kMaxMessages && size >= 2; ++i) {
    const uint8_t kind = data[0];
    const uint8_t length = data[1];
    data += 2;
    size -= 2;
    gemmd::BrokerRequest request;
    request.type = static_cast<gemmd::BrokerRequestType>(kind % 8);
    request.byte_size = gemmd::kPage;
    std::byte bytes[256] = {};
    std::memcpy(bytes, &request, sizeof(request));
    const size_t changed = std::min<size_t>(size, sizeof(request));
    for (size_t j = 0; j < changed; ++j) bytes[j] ^= static_cast<std::byte>(data[j]);
    data += changed;
    size -= changed;
    // Usually the right length.
    const size_t sent = length < 224 ? sizeof(request) : length;
    if (!gemmd::Exchange(*world, socket.get(), kind, absl::MakeConstSpan(bytes, sent))) break;
  }
  return 0;
}
