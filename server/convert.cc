// SPDX-License-Identifier: Apache-2.0
#include "server/convert.h"

#include "absl/strings/string_view.h"

#include <algorithm>
#include <string>

namespace gemmd {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view message = status.message().substr(0, kMaxStatusMessageBytes);
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()), std::string(message));
}

absl::Status StatusOfJob(const absl::Status& status, const JobCompletion& completion) {
  if (!status.ok() || completion.code == 0) return status;
  return absl::Status(static_cast<absl::StatusCode>(completion.code), Describe(completion.reason));
}

uint64_t MonotonicDeadline(std::chrono::system_clock::time_point deadline) {
  using std::chrono::nanoseconds;
  // gRPC gives the end of time for "none"; a deadline some years ahead is none as well, and cannot overflow below.
  const auto left = deadline - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24 * 365)) return 0;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const int64_t at = std::chrono::duration_cast<nanoseconds>(now).count() +
                     std::chrono::duration_cast<nanoseconds>(std::max(left, decltype(left)::zero())).count();
  return static_cast<uint64_t>(std::max<int64_t>(at, 1));
}

}  // namespace gemmd
