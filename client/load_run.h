// SPDX-License-Identifier: Apache-2.0
// Runs a load: slots, each with operands of its own, send one operation at a time; a closed loop sends a slot's next
// one when its answer comes, an open loop sends by the pacer's clock to whichever slot is free.
#ifndef GEMMD_CLIENT_LOAD_RUN_H_
#define GEMMD_CLIENT_LOAD_RUN_H_

#include "client/client.h"
#include "client/load_mix.h"
#include "client/load_report.h"
#include "client/pacer.h"
#include "client/problem.h"

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

struct LoadOptions {
  std::string server;
  ConnectOptions connect;
  std::vector<MixEntry> mix;
  Transport transport = Transport::kHost;  // Of A and D.
  bool resident_weights = true;            // False: B travels like A.
  std::string weights_name = {};           // B is the shared tensor of this name; wins over resident_weights.
  bool stream = false;
  bool open_loop = false;
  int64_t slots = 8;  // Closed: concurrency. Open: most in flight; beyond, sending is late (and latency shows it).
  int64_t connections = 1;  // Slots are dealt out over them.
  double rate = 100;        // Open loop: requests per second.
  Arrival arrival = Arrival::kPoisson;
  absl::Duration warmup = absl::Seconds(1);
  absl::Duration duration = absl::Seconds(10);
  bool check = false;  // Compares the last result of each slot with the reference, after the run.
  uint64_t seed = 1;
};

// Blocks until the load is over. Errors: those of connecting and of making the operands. Errors of requests are counted
// in the report instead.
absl::StatusOr<LoadReport> RunLoad(const LoadOptions& options);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_LOAD_RUN_H_
