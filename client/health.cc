// SPDX-License-Identifier: Apache-2.0
#include "client/health.h"

#include "client/grpc_status.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <vector>

namespace gemmd {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);
constexpr char kServiceTag = 0x0a;       // Field 1, length-delimited.
constexpr char kStatusTag = 0x08;        // Field 1, varint.
constexpr size_t kMaxServiceName = 127;  // One byte of length.

std::string StatusName(const grpc::ByteBuffer& response) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (response.Valid() && response.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  if (bytes.size() < 2 || bytes[0] != kStatusTag) return "UNKNOWN";
  switch (bytes[1]) {
    case 1:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "UNKNOWN";
  }
}

}  // namespace

absl::StatusOr<std::string> CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
                                        absl::Duration timeout) {
  if (service.size() > kMaxServiceName) return absl::InvalidArgumentError("service: expected at most 127 characters");
  std::string message;
  if (!service.empty())
    message = absl::StrCat(std::string(1, kServiceTag), std::string(1, static_cast<char>(service.size())), service);
  const grpc::Slice slice(message);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  grpc::Status status;
  absl::Notification done;
  grpc::GenericStub stub(channel);
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status result) {
                   status = std::move(result);
                   done.Notify();
                 });
  done.WaitForNotification();
  if (!status.ok()) return FromGrpc(status);
  return StatusName(response);
}

absl::Status WaitUntilServing(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
                              absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::string last = "no answer";
  while (absl::Now() < deadline) {
    channel->WaitForConnected(absl::ToChronoTime(deadline));
    const absl::StatusOr<std::string> health =
        CheckHealth(channel, service, std::max(deadline - absl::Now(), absl::ZeroDuration()));
    if (health.ok() && *health == "SERVING") return absl::OkStatus();
    last = health.ok() ? *health : health.status().ToString();
    absl::SleepFor(std::min(kPollInterval, std::max(deadline - absl::Now(), absl::ZeroDuration())));
  }
  return absl::DeadlineExceededError(
      absl::StrCat("health: expected SERVING within ", absl::FormatDuration(timeout), ", got ", last));
}

}  // namespace gemmd
