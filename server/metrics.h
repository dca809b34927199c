// SPDX-License-Identifier: Apache-2.0
// What the front end counts about requests, as Prometheus metrics. Every series exists from the start (a rate over a
// series that appears with its first event misses that event), and the request path touches cached pointers and atomic
// words only: no lock that a scrape may hold.
// What is a state rather than an event is read at scrape time (server/state_collector.h).
#ifndef GEMMD_SERVER_METRICS_H_
#define GEMMD_SERVER_METRICS_H_

#include "proto/job.h"
#include "proto/worker_counters.h"
#include "server/job_builder.h"

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <memory>

namespace gemmd {

// Why work was refused before it reached a device.
enum class Rejection : uint8_t { kDraining = 0, kUnauthenticated, kQuota, kMemory, kQueue, kDeadline, kNoWorker };
inline constexpr int kRejectionCount = 7;

// Where a deadline passed: before the request came, while its job waited, or after the launch (the result is then
// late, or nobody wants it any more).
enum class DeadlineMiss : uint8_t { kArrival = 0, kQueue, kDevice };
inline constexpr int kDeadlineMissCount = 3;

// One answered request, in nanoseconds of CLOCK_MONOTONIC differences.
struct RequestRecord {
  Op op = Op::kNone;
  Transport transport = Transport::kInline;
  absl::StatusCode code = absl::StatusCode::kOk;
  uint64_t total_ns = 0;
};

struct StageRecord {
  uint64_t decode_ns = 0;
  uint64_t queue_ns = 0;
  uint64_t device_ns = 0;
  uint64_t reply_ns = 0;
};

absl::string_view Name(Transport transport);
absl::string_view Name(Rejection rejection);
absl::string_view Name(DeadlineMiss miss);
// "OK", "INVALID_ARGUMENT", ...
absl::string_view Name(absl::StatusCode code);

// Thread-safe.
class Metrics {
 public:
  explicit Metrics(absl::string_view version);

  void CountRequest(const RequestRecord& record);
  // Requests that a device ran.
  void CountExecution(const StageRecord& stages, const IoBytes& io_bytes);
  void CountRejection(Rejection rejection);
  void CountDeadlineMiss(DeadlineMiss miss);
  // A call of any service without an accepted bearer token.
  void CountTokenRefusal();
  // The token file was read again.
  void CountTokenReload(const absl::Status& status);
  // A request whose traceparent is none.
  void CountMalformedTraceparent();
  void AddInFlight(int delta);
  void SetReady(bool ready);

  // All of it, as Prometheus reads it.
  std::shared_ptr<prometheus::Collectable> registry() const;

 private:
  static constexpr int kOpCount = 6;  // Op::kNone (malformed requests) to Op::kQuantize.
  static constexpr int kCodeCount = 17;
  static constexpr int kStageCount = 4;

  // The library's histograms take a mutex for each observation, and keep it while they are read.
  struct Histograms {
    DurationCounts requests[kOpCount][kTransportCount];
    DurationCounts stages[kStageCount];
  };
  class Page;

  void MakeRequestFamilies();
  void MakeExecutionFamilies();
  void MakeProcessFamilies(absl::string_view version);

  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  const std::shared_ptr<Histograms> histograms_ = std::make_shared<Histograms>();
  std::shared_ptr<Page> page_;
  prometheus::Counter* requests_[kOpCount][kTransportCount][kCodeCount] = {};
  prometheus::Counter* io_bytes_[kTransportCount][kDirections] = {};
  std::array<prometheus::Counter*, kDeadlineMissCount> deadline_misses_{};
  std::array<prometheus::Counter*, kRejectionCount> rejections_{};
  prometheus::Counter* token_refusals_ = nullptr;
  prometheus::Counter* token_reloads_ok_ = nullptr;
  prometheus::Counter* token_reloads_failed_ = nullptr;
  prometheus::Counter* malformed_traceparents_ = nullptr;
  prometheus::Gauge* in_flight_ = nullptr;
  prometheus::Gauge* ready_ = nullptr;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_METRICS_H_
