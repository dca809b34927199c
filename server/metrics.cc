// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include "server/metric_family.h"

#include <ctime>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

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
    case Transport::kDevice:
      return "device";
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

absl::string_view Name(DeadlineMiss miss) {
  switch (miss) {
    case DeadlineMiss::kArrival:
      return "arrival";
    case DeadlineMiss::kQueue:
      return "queue";
    case DeadlineMiss::kDevice:
      return "device";
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

// The registry's families and the histograms.
class Metrics::Page : public prometheus::Collectable {
 public:
  Page(std::shared_ptr<prometheus::Registry> registry, std::shared_ptr<Histograms> histograms)
      : registry_(std::move(registry)), histograms_(std::move(histograms)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families = registry_->Collect();
    Family requests(prometheus::MetricType::Histogram, "gemmd_request_duration_seconds",
                    "From receipt of a request to its answer.");
    for (int op = 0; op < kOpCount; ++op) {
      for (int transport = 0; transport < kTransportCount; ++transport) {
        requests.Add(
            {{"op", Text(Name(static_cast<Op>(op)))}, {"transport", Text(Name(static_cast<Transport>(transport)))}},
            Read(histograms_->requests[op][transport]));
      }
    }
    families.push_back(requests.Take());
    Family stages(prometheus::MetricType::Histogram, "gemmd_stage_duration_seconds",
                  "Where executed requests spent their time.");
    static constexpr std::array<const char*, kStageCount> kNames = {"decode", "queue", "device", "reply"};
    for (size_t i = 0; i < kNames.size(); ++i) stages.Add({{"stage", kNames[i]}}, Read(histograms_->stages[i]));
    families.push_back(stages.Take());
    return families;
  }

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<Histograms> histograms_;
};

Metrics::Metrics(absl::string_view version) : page_(std::make_shared<Page>(registry_, histograms_)) {
  MakeRequestFamilies();
  MakeExecutionFamilies();
  MakeProcessFamilies(version);
}

void Metrics::MakeRequestFamilies() {
  auto& requests = prometheus::BuildCounter()
                       .Name("gemmd_requests_total")
                       .Help("Answered requests; op none: no operation given.")
                       .Register(*registry_);
  for (int op = 0; op < kOpCount; ++op) {
    for (int transport = 0; transport < kTransportCount; ++transport) {
      const prometheus::Labels labels{{"op", Text(Name(static_cast<Op>(op)))},
                                      {"transport", Text(Name(static_cast<Transport>(transport)))}};
      for (int code = 0; code < kCodeCount; ++code) {
        prometheus::Labels with_code = labels;
        with_code["code"] = Text(Name(static_cast<absl::StatusCode>(code)));
        requests_[op][transport][code] = &requests.Add(with_code);
      }
    }
  }
}

void Metrics::MakeExecutionFamilies() {
  auto& io_bytes = prometheus::BuildCounter()
                       .Name("gemmd_io_bytes_total")
                       .Help("Bytes of the operands (in) and results (out) of executed requests, by how each came.")
                       .Register(*registry_);
  for (int transport = 0; transport < kTransportCount; ++transport) {
    for (size_t direction = 0; direction < kDirections; ++direction) {
      io_bytes_[transport][direction] = &io_bytes.Add({{"transport", Text(Name(static_cast<Transport>(transport)))},
                                                       {"direction", Text(Name(static_cast<Direction>(direction)))}});
    }
  }
  auto& rejections = prometheus::BuildCounter()
                         .Name("gemmd_rejected_total")
                         .Help("Requests refused before they reached a device, by reason.")
                         .Register(*registry_);
  for (int i = 0; i < kRejectionCount; ++i) {
    rejections_[static_cast<size_t>(i)] = &rejections.Add({{"reason", Text(Name(static_cast<Rejection>(i)))}});
  }
  auto& misses = prometheus::BuildCounter()
                     .Name("gemmd_deadline_missed_total")
                     .Help("Requests whose deadline passed, by where they were: arrival, queue, device.")
                     .Register(*registry_);
  for (int i = 0; i < kDeadlineMissCount; ++i) {
    deadline_misses_[static_cast<size_t>(i)] = &misses.Add({{"where", Text(Name(static_cast<DeadlineMiss>(i)))}});
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
  auto& reloads = prometheus::BuildCounter()
                      .Name("gemmd_config_reloads_total")
                      .Help("Files that were read again because they changed; failed: what was read before stays.")
                      .Register(*registry_);
  token_reloads_ok_ = &reloads.Add({{"file", "tokens"}, {"result", "ok"}});
  token_reloads_failed_ = &reloads.Add({{"file", "tokens"}, {"result", "failed"}});
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

std::shared_ptr<prometheus::Collectable> Metrics::registry() const { return page_; }

void Metrics::CountRequest(const RequestRecord& record) {
  const size_t op = Index(record.op, kOpCount);
  const auto transport = static_cast<size_t>(record.transport);
  requests_[op][transport][Index(record.code, kCodeCount)]->Increment();
  Observe(histograms_->requests[op][transport], record.total_ns);
}

void Metrics::CountExecution(const StageRecord& stages, const IoBytes& io_bytes) {
  for (size_t transport = 0; transport < io_bytes.size(); ++transport) {
    for (size_t direction = 0; direction < kDirections; ++direction) {
      const uint64_t bytes = io_bytes[transport][direction];
      if (bytes > 0) io_bytes_[transport][direction]->Increment(static_cast<double>(bytes));
    }
  }
  const std::array<uint64_t, kStageCount> nanos = {stages.decode_ns, stages.queue_ns, stages.device_ns,
                                                   stages.reply_ns};
  for (size_t i = 0; i < nanos.size(); ++i) Observe(histograms_->stages[i], nanos[i]);
}

void Metrics::CountRejection(Rejection rejection) { rejections_[static_cast<size_t>(rejection)]->Increment(); }

void Metrics::CountDeadlineMiss(DeadlineMiss miss) { deadline_misses_[static_cast<size_t>(miss)]->Increment(); }

void Metrics::CountTokenRefusal() { token_refusals_->Increment(); }

void Metrics::CountTokenReload(const absl::Status& status) {
  (status.ok() ? token_reloads_ok_ : token_reloads_failed_)->Increment();
}

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
