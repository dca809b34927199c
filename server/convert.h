// SPDX-License-Identifier: Apache-2.0
// Between the words of the services and those of gRPC: statuses and deadlines. Pure functions, used by every service.
#ifndef GEMMD_SERVER_CONVERT_H_
#define GEMMD_SERVER_CONVERT_H_

#include "proto/job.h"

#include "absl/status/status.h"
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace gemmd {

// Longest error text on the wire: gRPC carries it in a header, whose usual bound is 8 KiB for all of them.
inline constexpr size_t kMaxStatusMessageBytes = 1024;

// The same code; the message is cut to kMaxStatusMessageBytes.
grpc::Status ToGrpcStatus(const absl::Status& status);

// How a job went: `status` if it never completed, else what its completion says.
absl::Status StatusOfJob(const absl::Status& status, const JobCompletion& completion);

// A call's deadline as JobDescriptor::deadline_ns (CLOCK_MONOTONIC, at least 1); 0 if it has none.
uint64_t MonotonicDeadline(std::chrono::system_clock::time_point deadline);

}  // namespace gemmd

#endif  // GEMMD_SERVER_CONVERT_H_
