// SPDX-License-Identifier: Apache-2.0
// What is remembered of the latest requests: which trace each belongs to, when it passed each stage, where it ran. Read
// by Admin.GetTrace and the page /tracez; also writes the log lines that are about a request.
#ifndef GEMMD_SERVER_REQUEST_LOG_H_
#define GEMMD_SERVER_REQUEST_LOG_H_

#include "proto/job.h"
#include "proto/log.h"
#include "proto/trace_context.h"
#include "server/job_builder.h"
#include "server/job_shape.h"
#include "server/worker_pool.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace gemmd {

// One request from receipt to answer. Times are CLOCK_MONOTONIC in nanoseconds; 0: it did not get there.
struct TracedRequest {
  TraceContext context = {};  // As the caller gave it, or made up: then without a caller's span.
  uint64_t span_id = 0;       // This request's own.
  uint64_t request_id = 0;
  Op op = Op::kNone;
  Transport transport = Transport::kInline;
  absl::StatusCode code = absl::StatusCode::kOk;
  JobShape shape = {};
  int worker = kAnyWorker;
  uint32_t batch_jobs = 0;
  uint64_t received_ns = 0;
  uint64_t submitted_ns = 0;  // On its worker's ring.
  uint64_t launched_ns = 0;   // Its batch; equal for all requests of a batch.
  uint64_t finished_ns = 0;   // Its batch.
  uint64_t completed_ns = 0;  // Seen by the front end.
  uint64_t answered_ns = 0;
};

// Thread-safe. The request path takes one atomic increment and a lock that nobody else wants, and never waits for it.
class RequestLog {
 public:
  // Keeps the latest `capacity` requests; 0: none. `on_malformed` is called for each traceparent that is none.
  RequestLog(size_t capacity, std::function<void()> on_malformed);
  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  // The trace of a request that came with this traceparent; empty: none came. A malformed one is ignored, as the
  // specification demands: the request begins a trace of its own.
  TraceContext Begin(absl::string_view traceparent);

  // A span id that no other request of this daemon has.
  uint64_t NewSpanId();

  // Remembers an answered request, unless its caller said that the trace is not sampled, and writes its log line: an
  // error if it was our fault, else at level debug.
  void End(const TracedRequest& request, const absl::Status& status);

  // The remembered requests, the one answered last at the end.
  std::vector<TracedRequest> Latest() const;

  size_t capacity() const { return capacity_; }

 private:
  struct Slot {
    mutable absl::Mutex mutex;
    uint64_t sequence ABSL_GUARDED_BY(mutex) = 0;  // 0: empty.
    TracedRequest request ABSL_GUARDED_BY(mutex);
  };

  const size_t capacity_;
  const std::function<void()> on_malformed_;
  const std::unique_ptr<Slot[]> slots_;
  std::atomic<uint64_t> next_sequence_{1};
  // Ids that we make up are a random start and a mixed counter: unique, and nobody's secret.
  uint64_t trace_id_high_ = 0;
  std::atomic<uint64_t> next_id_{0};
  LogLimiter faults_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_REQUEST_LOG_H_
