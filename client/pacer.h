// SPDX-License-Identifier: Apache-2.0
// When the requests of an open loop are meant to start: fixed by rate and arrival process alone, never by how the
// server fares, so that waiting counts as latency. Pure logic without a clock; one thread.
#ifndef GEMMD_CLIENT_PACER_H_
#define GEMMD_CLIENT_PACER_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include <cstdint>
#include <random>

namespace gemmd {

enum class Arrival { kConstant, kPoisson };
absl::StatusOr<Arrival> ParseArrival(absl::string_view name);  // constant, poisson.

class Pacer {
 public:
  // Requires: rate > 0 (requests per second).
  Pacer(Arrival arrival, double rate, absl::Time start, uint64_t seed)
      : arrival_(arrival), rate_(rate), start_(start), random_(seed) {}

  // The intended start of the next request. Never decreases.
  absl::Time Next();

 private:
  const Arrival arrival_;
  const double rate_;
  const absl::Time start_;
  std::mt19937_64 random_;
  double seconds_ = 0;  // Poisson: since start_.
  int64_t count_ = 0;   // Constant: computed from the count, so that rounding does not add up.
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_PACER_H_
