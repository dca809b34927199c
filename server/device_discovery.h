// SPDX-License-Identifier: Apache-2.0
// Which GPUs of this machine workers can run on. The front end never creates a CUDA context, so it asks the worker
// program, which also knows whether it was built with the CUDA device and finds its libraries.
#ifndef GEMMD_SERVER_DEVICE_DISCOVERY_H_
#define GEMMD_SERVER_DEVICE_DISCOVERY_H_

#include "server/options.h"

#include "absl/time/time.h"

#include <string>

namespace gemmd {

// Runs `worker_binary --list_gpus`. Takes about 20 ms without a driver, up to a second with one. A worker that cannot
// be run, or does not end in time, counts as one without GPUs, for the reason given.
DeviceSupport FindDevices(const std::string& worker_binary, absl::Duration timeout = absl::Seconds(30));

}  // namespace gemmd

#endif  // GEMMD_SERVER_DEVICE_DISCOVERY_H_
