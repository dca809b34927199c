// SPDX-License-Identifier: Apache-2.0
#include "client/pacer.h"

#include "absl/strings/str_cat.h"

namespace gemmd {

absl::StatusOr<Arrival> ParseArrival(absl::string_view name) {
  if (name == "constant") return Arrival::kConstant;
  if (name == "poisson") return Arrival::kPoisson;
  return absl::InvalidArgumentError(absl::StrCat("arrival: expected constant or poisson, got \"", name, "\""));
}

absl::Time Pacer::Next() {
  if (arrival_ == Arrival::kConstant) return start_ + absl::Seconds(static_cast<double>(count_++) / rate_);
  seconds_ += std::exponential_distribution<double>(rate_)(random_);
  return start_ + absl::Seconds(seconds_);
}

}  // namespace gemmd
