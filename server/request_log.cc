// SPDX-License-Identifier: Apache-2.0
#include "server/request_log.h"

#include "server/metrics.h"

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <utility>

namespace gemmd {
namespace {

// SplitMix64: one to one, so that different counts give different ids.
uint64_t Mix(uint64_t count) {
  uint64_t mixed = count * 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return mixed ^ (mixed >> 31);
}

bool OurFault(absl::StatusCode code) {
  return code == absl::StatusCode::kInternal || code == absl::StatusCode::kUnknown ||
         code == absl::StatusCode::kDataLoss;
}

std::string Line(const TracedRequest& request, const absl::Status& status) {
  const JobShape& shape = request.shape;
  return absl::StrCat("request: op=", Name(request.op), " m=", shape.m, " n=", shape.n, " k=", shape.k,
                      " groups=", shape.groups, " transport=", Name(request.transport), " worker=", request.worker,
                      " total_us=", (request.answered_ns - request.received_ns) / 1000, " status=", status.ToString());
}

}  // namespace

RequestLog::RequestLog(size_t capacity, std::function<void()> on_malformed)
    : capacity_(capacity), on_malformed_(std::move(on_malformed)), slots_(std::make_unique<Slot[]>(capacity)) {
  std::random_device random;
  std::uniform_int_distribution<uint64_t> any;
  trace_id_high_ = any(random);
  next_id_ = any(random);
}

TraceContext RequestLog::Begin(absl::string_view traceparent) {
  if (!traceparent.empty()) {
    if (const std::optional<TraceContext> context = ParseTraceparent(traceparent)) return *context;
    on_malformed_();
  }
  return {.trace_id = {trace_id_high_, NewSpanId()}, .span_id = 0, .sampled = true};
}

uint64_t RequestLog::NewSpanId() {
  uint64_t id = 0;
  while (id == 0) id = Mix(next_id_.fetch_add(1, std::memory_order_relaxed));  // One count of 2^64 gives 0.
  return id;
}

void RequestLog::End(const TracedRequest& request, const absl::Status& status) {
  const RequestTag tag{request.context.trace_id, request.request_id};
  if (OurFault(status.code())) {
    faults_.Log(spdlog::level::err, tag, Line(request, status));
  } else if (spdlog::should_log(spdlog::level::debug)) {
    LogRequest(spdlog::level::debug, tag, Line(request, status));
  }
  if (capacity_ == 0 || !request.context.sampled) return;
  const uint64_t sequence = next_sequence_.fetch_add(1, std::memory_order_relaxed);
  Slot& slot = slots_[sequence % capacity_];
  // Whoever reads the slot has the least priority, and may be held up: then this request is forgotten rather than late.
  if (!slot.mutex.TryLock()) return;
  // A thread that was held up must not replace what came a whole round later.
  if (slot.sequence < sequence) {
    slot.sequence = sequence;
    slot.request = request;
  }
  slot.mutex.Unlock();
}

std::vector<TracedRequest> RequestLog::Latest() const {
  std::vector<std::pair<uint64_t, TracedRequest>> found;
  for (size_t i = 0; i < capacity_; ++i) {
    absl::MutexLock lock(&slots_[i].mutex);
    if (slots_[i].sequence != 0) found.emplace_back(slots_[i].sequence, slots_[i].request);
  }
  std::sort(found.begin(), found.end(), [](const auto& left, const auto& right) { return left.first < right.first; });
  std::vector<TracedRequest> requests;
  requests.reserve(found.size());
  for (auto& [sequence, request] : found) requests.push_back(request);
  return requests;
}

}  // namespace gemmd
