// SPDX-License-Identifier: Apache-2.0
// The answer of Admin.GetTrace as a file for trace viewers (Perfetto, chrome://tracing): Chrome's JSON format. One row
// for each stage of the daemon and one for each worker's queue and device, with more of them where requests overlap;
// batches are slices of a device, and arrows lead from each request through its batch to its reply.
#ifndef GEMMD_CLIENT_CHROME_TRACE_H_
#define GEMMD_CLIENT_CHROME_TRACE_H_

#include "gemmd/v1/admin.pb.h"

#include <nlohmann/json.hpp>

namespace gemmd {

nlohmann::json ToChromeTrace(const v1::GetTraceResponse& trace);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_CHROME_TRACE_H_
