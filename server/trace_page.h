// SPDX-License-Identifier: Apache-2.0
// /tracez: the slowest and the latest of the requests that are remembered.
#ifndef GEMMD_SERVER_TRACE_PAGE_H_
#define GEMMD_SERVER_TRACE_PAGE_H_

#include "server/html.h"
#include "server/request_log.h"

#include <string>

namespace gemmd {

// Adds the tables to a page that was begun.
void AddTraces(const RequestLog& requests, HtmlPage& page);

}  // namespace gemmd

#endif  // GEMMD_SERVER_TRACE_PAGE_H_
