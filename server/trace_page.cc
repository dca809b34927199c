// SPDX-License-Identifier: Apache-2.0
#include "server/trace_page.h"

#include "proto/job_ring.h"
#include "server/debug_pages.h"
#include "server/metrics.h"

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {
namespace {

constexpr size_t kRows = 50;  // Of each table: what fits a screen or two.

// "-" unless both moments were reached.
std::string Between(uint64_t from_ns, uint64_t to_ns) {
  if (from_ns == 0 || to_ns == 0) return "-";
  return DurationText(to_ns - std::min(from_ns, to_ns));
}

std::string ShapeText(const JobShape& shape) {
  const std::string text = absl::StrCat(shape.m, "x", shape.n, "x", shape.k);
  return shape.groups == 0 ? text : absl::StrCat(shape.groups, "x", text);
}

uint64_t Total(const TracedRequest& request) { return request.answered_ns - request.received_ns; }

void AddTable(absl::Span<const TracedRequest> requests, HtmlPage& page) {
  const uint64_t now_ns = MonotonicNanos();
  std::vector<std::vector<std::string>> rows;
  for (const TracedRequest& request : requests.subspan(0, kRows)) {
    rows.push_back(
        {Between(request.answered_ns, now_ns), TraceIdHex(request.context.trace_id), absl::StrCat(request.request_id),
         std::string(Name(request.op)), ShapeText(request.shape), std::string(Name(request.transport)),
         std::string(Name(request.code)), request.worker == kAnyWorker ? "-" : absl::StrCat(request.worker),
         absl::StrCat(request.batch_jobs), DurationText(Total(request)),
         Between(request.received_ns, request.submitted_ns), Between(request.submitted_ns, request.launched_ns),
         Between(request.launched_ns, request.finished_ns), Between(request.completed_ns, request.answered_ns)});
  }
  page.Table({"ago", "trace", "request", "operation", "shape", "transport", "result", "worker", "in batch", "total",
              "decode", "queue", "device", "reply"},
             rows);
}

}  // namespace

void AddTraces(const RequestLog& requests, HtmlPage& page) {
  std::vector<TracedRequest> found = requests.Latest();
  page.Paragraph(absl::StrCat("The latest ", found.size(),
                              " answered requests whose callers let them be sampled; at most ", requests.capacity(),
                              " are remembered (--trace_requests). gemmctl trace writes all of "
                              "them as a file for trace viewers."));
  std::reverse(found.begin(), found.end());
  page.Heading("Latest");
  AddTable(found, page);
  page.Heading("Slowest");
  std::stable_sort(found.begin(), found.end(),
                   [](const TracedRequest& left, const TracedRequest& right) { return Total(left) > Total(right); });
  AddTable(found, page);
}

}  // namespace gemmd
