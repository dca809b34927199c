// SPDX-License-Identifier: Apache-2.0
// gemmload --plot: what a load measured as one SVG picture, which browsers, documents and image viewers show. It needs
// nothing beside itself and follows the reader's light or dark scheme. Pure functions.
#ifndef GEMMD_CLIENT_LOAD_PLOT_H_
#define GEMMD_CLIENT_LOAD_PLOT_H_

#include "client/load_report.h"

#include "absl/strings/string_view.h"

#include <string>

namespace gemmd {

// On the left latency over percentiles, both logarithmic (from the intended start and, where it differs, from sending);
// on the right answers per second over time; above them `title` and the totals.
std::string ToSvg(const LoadReport& report, absl::string_view title);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_LOAD_PLOT_H_
