// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include "server/device_families.h"
#include "server/metrics_listener.h"
#include "server/state_collector.h"
#include "tests/server/service_fixture.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

std::string Page(const prometheus::Collectable& source) {
  return prometheus::TextSerializer().Serialize(source.Collect());
}

TEST(MetricsTest, EverySeriesOfRequestsExistsFromTheStart) {
  const Metrics metrics("1.2.3");
  const std::string page = Page(*metrics.registry());
  for (const char* op : {"dense", "m_grouped_contiguous", "m_grouped_masked", "k_grouped", "quantize"}) {
    for (const char* transport : {"inline", "host", "tensor"}) {
      for (const char* code : {"OK", "INVALID_ARGUMENT", "UNAVAILABLE", "UNAUTHENTICATED"}) {
        const std::string series = std::string("gemmd_requests_total{code=\"") + code + "\",op=\"" + op +
                                   "\",transport=\"" + transport + "\"} 0\n";
        EXPECT_THAT(page, HasSubstr(series));
      }
    }
  }
  EXPECT_THAT(page, HasSubstr("gemmd_build_info{version=\"1.2.3\"} 1\n"));
}

TEST(MetricsTest, ARequestIsCountedWithItsLabelsAndDuration) {
  Metrics metrics("1");
  metrics.CountRequest({Op::kDense, Transport::kHost, absl::StatusCode::kNotFound, 3'000'000});
  const std::string page = Page(*metrics.registry());
  EXPECT_THAT(page, HasSubstr("gemmd_requests_total{code=\"NOT_FOUND\",op=\"dense\",transport=\"host\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_request_duration_seconds_count{op=\"dense\",transport=\"host\"} 1\n"));
  EXPECT_THAT(page,
              HasSubstr("gemmd_request_duration_seconds_bucket{op=\"dense\",transport=\"host\",le=\"0.002\"} 0\n"));
  EXPECT_THAT(page,
              HasSubstr("gemmd_request_duration_seconds_bucket{op=\"dense\",transport=\"host\",le=\"0.005\"} 1\n"));
}

TEST(MetricsTest, AnExecutionIsCountedInStagesAndBytes) {
  Metrics metrics("1");
  metrics.CountExecution({1, 2, 3, 4}, {{{10, 20}, {30, 0}, {0, 0}}});
  const std::string page = Page(*metrics.registry());
  EXPECT_THAT(page, HasSubstr("gemmd_io_bytes_total{direction=\"in\",transport=\"inline\"} 10\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_io_bytes_total{direction=\"out\",transport=\"inline\"} 20\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_io_bytes_total{direction=\"in\",transport=\"host\"} 30\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_io_bytes_total{direction=\"out\",transport=\"tensor\"} 0\n"));
  for (const char* stage : {"decode", "queue", "device", "reply"}) {
    EXPECT_THAT(page, HasSubstr(std::string("gemmd_stage_duration_seconds_count{stage=\"") + stage + "\"} 1\n"));
  }
}

TEST(MetricsTest, ValuesOutsideTheLabelsAreCountedSomewhere) {
  Metrics metrics("1");
  metrics.CountRequest({static_cast<Op>(200), Transport::kInline, static_cast<absl::StatusCode>(99), 0});
  EXPECT_THAT(Page(*metrics.registry()),
              HasSubstr("gemmd_requests_total{code=\"UNKNOWN\",op=\"none\",transport=\"inline\"} 1\n"));
}

TEST(MetricsTest, RejectionsAndGaugesAreThere) {
  Metrics metrics("1");
  metrics.CountRejection(Rejection::kQuota);
  metrics.AddInFlight(2);
  metrics.AddInFlight(-1);
  metrics.SetReady(true);
  const std::string page = Page(*metrics.registry());
  EXPECT_THAT(page, HasSubstr("gemmd_rejected_total{reason=\"quota\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_rejected_total{reason=\"draining\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_inflight_requests 1\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_ready 1\n"));
}

TEST(MetricsTest, ReadingTheTokensAgainIsCountedByHowItWent) {
  Metrics metrics("1");
  EXPECT_THAT(Page(*metrics.registry()), HasSubstr("gemmd_config_reloads_total{file=\"tokens\",result=\"ok\"} 0\n"));
  metrics.CountTokenReload(absl::OkStatus());
  metrics.CountTokenReload(absl::OkStatus());
  metrics.CountTokenReload(absl::InvalidArgumentError("mode"));
  const std::string page = Page(*metrics.registry());
  EXPECT_THAT(page, HasSubstr("gemmd_config_reloads_total{file=\"tokens\",result=\"ok\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_config_reloads_total{file=\"tokens\",result=\"failed\"} 1\n"));
}

TEST(DeviceFamiliesTest, TheOldestJobOfADeviceIsThatOfItsSlowestWorker) {
  std::vector<WorkerSnapshot> workers(3);
  workers[0].traits.device = workers[1].traits.device = "shared";
  workers[2].traits.device = "idle";
  workers[0].oldest_job_ns = 250'000'000;
  workers[1].oldest_job_ns = 1'500'000'000;
  std::vector<prometheus::MetricFamily> families;
  AddDeviceFamilies(workers, families);
  const std::string page = prometheus::TextSerializer().Serialize(families);
  EXPECT_THAT(page, HasSubstr("gemmd_queue_oldest_seconds{device=\"shared\"} 1.5\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_queue_oldest_seconds{device=\"idle\"} 0\n"));
}

TEST(StateCollectorTest, TheStateOfThePartsIsReadAtEachScrape) {
  FrontEndState state;
  const StateCollector collector({state.pool, *state.regions, *state.tensors, state.sessions, *state.arena});
  EXPECT_THAT(Page(collector), HasSubstr("gemmd_sessions{origin=\"local\"} 0\n"));
  absl::StatusOr<std::shared_ptr<Session>> session = state.sessions.Open({.remote = false, .uid = 1}, "test");
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(RegisterHost(*state.regions, *session, {4096, true}, SealedMemory(4096)).ok());
  const std::string page = Page(collector);
  EXPECT_THAT(page, HasSubstr("gemmd_sessions{origin=\"local\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_regions{kind=\"host\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_region_bytes{kind=\"host\"} 4096\n"));
  EXPECT_THAT(page, HasSubstr("gemmd_region_registrations_total{kind=\"host\",result=\"OK\"} 1\n"));
  EXPECT_THAT(page,
              HasSubstr("gemmd_region_registrations_total{kind=\"shared_memory\",result=\"PERMISSION_DENIED\"} 0\n"));
  for (const char* name : {"gemmd_worker_state{", "gemmd_worker_restarts_total{", "gemmd_queue_requests{",
                           "gemmd_regions_reaped_total ", "gemmd_tensors{", "gemmd_tensor_bytes "}) {
    EXPECT_THAT(page, HasSubstr(name));
  }
}

TEST(MetricsListenerTest, PortZeroTakesAFreePort) {
  const Metrics metrics("1");
  absl::StatusOr<std::unique_ptr<MetricsListener>> listener =
      MetricsListener::Start("127.0.0.1:0", {metrics.registry()});
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_NE((*listener)->address(), "127.0.0.1:0");
}

TEST(MetricsListenerTest, ItStopsAtOnce) {
  const Metrics metrics("1");
  absl::Duration best = absl::InfiniteDuration();
  for (const char* address : {"127.0.0.1:0", "0.0.0.0:0", "127.0.0.1:0"}) {
    absl::StatusOr<std::unique_ptr<MetricsListener>> listener = MetricsListener::Start(address, {metrics.registry()});
    ASSERT_TRUE(listener.ok()) << listener.status();
    const absl::Time start = absl::Now();
    listener->reset();
    best = std::min(best, absl::Now() - start);
  }
  // The best of three: what else the machine does is not what is tested.
  EXPECT_LT(best, absl::Milliseconds(300));
}

TEST(MetricsListenerTest, AnAddressInUseIsAnError) {
  const Metrics metrics("1");
  absl::StatusOr<std::unique_ptr<MetricsListener>> first = MetricsListener::Start("127.0.0.1:0", {metrics.registry()});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(MetricsListener::Start((*first)->address(), {metrics.registry()}).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace gemmd
