// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include <ctime>
#include <string>

namespace gemmd {
namespace {

constexpr double kNanosPerSecond = 1e9;

// From 5 us, where a decode product on a GPU ends, to 10 s, where the patience of clients does.
prometheus::Histogram::BucketBoundaries SecondsBuckets() {
  return {5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10};
}

prometheus::Histogram::BucketBoundaries BatchBuckets() { return {1, 2, 4, 8, 16, 32, 64, 128, 256}; }

std::string Text(absl::string_view text) { return std::string(text); }

size_t Index(Op op, int count) {
  const auto index = static_cast<size_t>(op);
  return index < static_cast<size_t>(count) ? index : 0;
}

size_t Index(absl::StatusCode code, int count) {
  const auto index = static_cast<size_t>(code);
  return index < static_cast<size_t>(count) ? index : static_cast<size_t>(absl::StatusCode::kUnknown);
}

}  // namespace

absl::string_view Name(Transport transport) {
  switch (transport) {
    case Transport::kInline:
      return "inline";
    case Transport::kHost:
      return "host";
    case Transport::kTensor:
      return "tensor";
  }
  return "invalid";
}

absl::string_view Name(Rejection rejection) {
  switch (rejection) {
    case Rejection::kDraining:
      return "draining";
    case Rejection::kUnauthenticated:
      return "unauthenticated";
    case Rejection::kQuota:
      return "quota";
    case Rejection::kMemory:
      return "memory";
    case Rejection::kQueue:
      return "queue";
    case Rejection::kDeadline:
      return "deadline";
    case Rejection::kNoWorker:
      return "no_worker";
  }
  return "invalid";
}

absl::string_view Name(absl::StatusCode code) {
  static constexpr absl::string_view kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  return kNames[Index(code, static_cast<int>(std::size(kNames)))];
}

Metrics::Metrics(absl::string_view version) {
  MakeRequestFamilies();
  MakeExecutionFamilies();
  MakeProcessFamilies(version);
}

void Metrics::MakeRequestFamilies() {
  auto& requests = prometheus::BuildCounter()
                       .Name("gemmd_requests_total")
                       .Help("Answered requests; op none: no operation given.")
                       .Register(*registry_);
  auto& durations = prometheus::BuildHistogram()
                        .Name("gemmd_request_duration_seconds")
                        .Help("From receipt of a request to its answer.")
                        .Register(*registry_);
  for (int op = 0; op < kOpCount; ++op) {
    for (int transport = 0; transport < kTransportCount; ++transport) {
      const prometheus::Labels labels{{"op", Text(Name(static_cast<Op>(op)))},
                                      {"transport", Text(Name(static_cast<Transport>(transport)))}};
      durations_[op][transport] = &durations.Add(labels, SecondsBuckets());
      for (int code = 0; code < kCodeCount; ++code) {
        prometheus::Labels with_code = labels;
        with_code["code"] = Text(Name(static_cast<absl::StatusCode>(code)));
        requests_[op][transport][code] = &requests.Add(with_code);
      }
    }
  }
}

void Metrics::MakeExecutionFamilies() {
  auto& stages = prometheus::BuildHistogram()
                     .Name("gemmd_stage_duration_seconds")
                     .Help("Where executed requests spent their time.")
                     .Register(*registry_);
  const std::array<const char*, kStageCount> names = {"decode", "queue", "device", "reply"};
  for (size_t i = 0; i < names.size(); ++i) stages_[i] = &stages.Add({{"stage", names[i]}}, SecondsBuckets());
  auto& flops = prometheus::BuildCounter()
                    .Name("gemmd_flops_total")
                    .Help("2*M*N*K of executed requests, over the rows that were computed.")
                    .Register(*registry_);
  for (int op = 0; op < kOpCount; ++op) {
    flops_[static_cast<size_t>(op)] = &flops.Add({{"op", Text(Name(static_cast<Op>(op)))}});
  }
  batch_jobs_ = &prometheus::BuildHistogram()
                     .Name("gemmd_batch_jobs")
                     .Help("Requests in the launch that an executed request was part of.")
                     .Register(*registry_)
                     .Add({}, BatchBuckets());
  auto& rejections = prometheus::BuildCounter()
                         .Name("gemmd_rejected_total")
                         .Help("Requests refused before they reached a device, by reason.")
                         .Register(*registry_);
  for (int i = 0; i < kRejectionCount; ++i) {
    rejections_[static_cast<size_t>(i)] = &rejections.Add({{"reason", Text(Name(static_cast<Rejection>(i)))}});
  }
}

void Metrics::MakeProcessFamilies(absl::string_view version) {
  in_flight_ = &prometheus::BuildGauge()
                    .Name("gemmd_inflight_requests")
                    .Help("Requests received and not yet answered.")
                    .Register(*registry_)
                    .Add({});
  ready_ = &prometheus::BuildGauge()
                .Name("gemmd_ready")
                .Help("1 while the health service says SERVING.")
                .Register(*registry_)
                .Add({});
  token_refusals_ = &prometheus::BuildCounter()
                         .Name("gemmd_token_refusals_total")
                         .Help("Calls refused for want of an accepted bearer token.")
                         .Register(*registry_)
                         .Add({});
  malformed_traceparents_ = &prometheus::BuildCounter()
                                 .Name("gemmd_malformed_traceparents_total")
                                 .Help("Requests with a traceparent that is none, which was ignored.")
                                 .Register(*registry_)
                                 .Add({});
  prometheus::BuildGauge()
      .Name("gemmd_build_info")
      .Help("Always 1; the labels say what runs.")
      .Register(*registry_)
      .Add({{"version", Text(version)}})
      .Set(1);
  prometheus::BuildGauge()
      .Name("gemmd_start_time_seconds")
      .Help("When the daemon started, in seconds since the epoch.")
      .Register(*registry_)
      .Add({})
      .Set(static_cast<double>(std::time(nullptr)));
}

void Metrics::CountRequest(const RequestRecord& record) {
  const size_t op = Index(record.op, kOpCount);
  const auto transport = static_cast<size_t>(record.transport);
  requests_[op][transport][Index(record.code, kCodeCount)]->Increment();
  durations_[op][transport]->Observe(static_cast<double>(record.total_ns) / kNanosPerSecond);
}

void Metrics::CountExecution(Op op, double flops, uint32_t batch_jobs, const StageRecord& stages) {
  flops_[Index(op, kOpCount)]->Increment(flops);
  batch_jobs_->Observe(batch_jobs);
  const std::array<uint64_t, kStageCount> nanos = {stages.decode_ns, stages.queue_ns, stages.device_ns,
                                                   stages.reply_ns};
  for (size_t i = 0; i < nanos.size(); ++i) stages_[i]->Observe(static_cast<double>(nanos[i]) / kNanosPerSecond);
}

void Metrics::CountRejection(Rejection rejection) { rejections_[static_cast<size_t>(rejection)]->Increment(); }

void Metrics::CountTokenRefusal() { token_refusals_->Increment(); }

void Metrics::CountMalformedTraceparent() { malformed_traceparents_->Increment(); }

void Metrics::AddInFlight(int delta) {
  if (delta > 0) {
    in_flight_->Increment(delta);
  } else {
    in_flight_->Decrement(-delta);
  }
}

void Metrics::SetReady(bool ready) { ready_->Set(ready ? 1 : 0); }

}  // namespace gemmd
