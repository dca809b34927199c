// SPDX-License-Identifier: Apache-2.0
// Waits for the answer of one unary call on the calling thread. A thread that sleeps while a GPU computes for 200 us
// wakes late (30 to 90 us on a virtual machine, more than all the rest of the call), so this one polls first.
#ifndef GEMMD_CLIENT_UNARY_WAIT_H_
#define GEMMD_CLIENT_UNARY_WAIT_H_

#include "absl/time/time.h"
#include <grpcpp/completion_queue.h>

#include <optional>

namespace gemmd {

// How long a call of this process polls unless told otherwise: long enough for a large product where it may use 8 cores
// or more, never where it may use fewer.
absl::Duration DefaultSpin();

// Returns when the only operation of `queue` is complete, and shuts the queue down. Polls for `spin` (none:
// DefaultSpin) unless a quarter of the machine's cores already does so in this process, then sleeps. False if the
// operation failed: then there is no answer, whatever its status says.
bool AwaitCall(grpc::CompletionQueue& queue, std::optional<absl::Duration> spin);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_UNARY_WAIT_H_
