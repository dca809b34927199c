// SPDX-License-Identifier: Apache-2.0
// The pages by which a person sees what the daemon is doing, on the metrics listener. They take snapshots, as the
// metrics do, and show no name, secret or token of anybody. /tracez is in server/trace_page.h.
#ifndef GEMMD_SERVER_DEBUG_PAGES_H_
#define GEMMD_SERVER_DEBUG_PAGES_H_

#include "server/health.h"
#include "server/http_page.h"
#include "server/options.h"
#include "server/request_log.h"
#include "server/state_collector.h"

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

// All outlive the pages.
struct DebugSources {
  StateSources state;
  const Health& health;
  const RequestLog& requests;
  const ServerOptions& options;
  std::string version;
};

// /, /statusz, /queuez, /regionz, /kernelz, /tracez and /configz.
std::vector<HttpPage> DebugPages(const DebugSources& sources);

// "1.5 ms", "3.2 s", "4 min": for people.
std::string DurationText(uint64_t ns);

}  // namespace gemmd

#endif  // GEMMD_SERVER_DEBUG_PAGES_H_
