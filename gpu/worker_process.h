// SPDX-License-Identifier: Apache-2.0
// A worker process from its first to its last moment, whatever its device: the whole of gemmd-worker but flags and the
// choice of the device.
#ifndef GEMMD_GPU_WORKER_PROCESS_H_
#define GEMMD_GPU_WORKER_PROCESS_H_

#include "gpu/device.h"
#include "gpu/worker.h"
#include "proto/unique_fd.h"
#include "proto/worker_counters.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gemmd {

// Ties this process to its parent: it is killed when the parent dies. First thing in main, before a device is opened.
// Errors: UNAVAILABLE if the parent is gone already.
absl::Status DieWithParent();

// The control socket that a parent handed down as descriptor number `fd`.
// Errors: INVALID_ARGUMENT if it is not a SOCK_SEQPACKET socket.
absl::StatusOr<UniqueFd> TakeControlSocket(int fd);

// Serves the front end until it closes the socket or the device is beyond repair; returns the exit status
// (proto/control.h). What happens is counted in `counters`, which the front end gets with the hello. The loop runs on
// the calling thread, control requests on a second one.
int RunWorkerProcess(Device& device, const WorkerCounters& counters, UniqueFd control_socket,
                     const WorkerOptions& options);

}  // namespace gemmd

#endif  // GEMMD_GPU_WORKER_PROCESS_H_
