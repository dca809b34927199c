// SPDX-License-Identifier: Apache-2.0
#include "proto/worker_counters.h"

#include <gtest/gtest.h>

#include <thread>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

WorkerCounters OpenOther(const WorkerCounters& counters) {
  absl::StatusOr<WorkerCounters> other = WorkerCounters::Open(UniqueFd(dup(counters.fd())));
  EXPECT_TRUE(other.ok()) << other.status();
  return *std::move(other);
}

TEST(WorkerCountersTest, TheOtherSideReadsWhatWasCounted) {
  const WorkerCounters worker = *WorkerCounters::Create();
  const WorkerCounters front_end = OpenOther(worker);
  EXPECT_EQ(front_end.ReadCounts().kernel_hits, 0u);
  Count(worker.counts().kernel_hits, 3);
  CountDouble(worker.counts().flops_bits[static_cast<size_t>(Op::kKGrouped)][static_cast<size_t>(ProductType::kBf16)],
              1.5);
  SetGauge(worker.gauges().queued_jobs, 7);
  EXPECT_EQ(front_end.ReadCounts().kernel_hits, 3u);
  EXPECT_EQ(front_end.ReadCounts().flops(Op::kKGrouped, ProductType::kBf16), 1.5);
  EXPECT_EQ(front_end.ReadCounts().flops(Op::kKGrouped, ProductType::kE4m3), 0);
  EXPECT_EQ(front_end.ReadGauges().queued_jobs, 7u);
}

TEST(WorkerCountersTest, WhatWasCountedOutlivesTheWorkersSide) {
  auto worker = WorkerCounters::Create();
  const WorkerCounters front_end = OpenOther(*worker);
  Count(worker->counts().compiles_ok);
  worker = absl::UnavailableError("gone");
  EXPECT_EQ(front_end.ReadCounts().compiles_ok, 1u);
}

TEST(WorkerCountersTest, ThreadsLoseNothing) {
  constexpr int kThreads = 4;
  constexpr int kTimes = 20'000;
  const WorkerCounters worker = *WorkerCounters::Create();
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < kTimes; ++j) {
        Count(worker.counts().busy_ns, 2);
        CountDouble(worker.counts().flops_bits[1][0], 0.5);
        Observe(worker.counts().batch_rows, 3);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const WorkerCounts counts = worker.ReadCounts();
  EXPECT_EQ(counts.busy_ns, 2u * kThreads * kTimes);
  EXPECT_EQ(counts.flops(Op::kDense, ProductType::kE4m3), 0.5 * kThreads * kTimes);
  EXPECT_EQ(counts.batch_rows.sum, 3u * kThreads * kTimes);
  EXPECT_EQ(counts.batch_rows.buckets[2], uint64_t{kThreads} * kTimes);
}

TEST(WorkerCountersTest, ABoundBelongsToItsBucketAndTheLastBucketTakesTheRest) {
  DurationCounts durations;
  Observe(durations, 5'000);
  Observe(durations, 5'001);
  Observe(durations, 11'000'000'000);
  EXPECT_EQ(durations.buckets[0], 1u);
  EXPECT_EQ(durations.buckets[1], 1u);
  EXPECT_EQ(durations.buckets[kDurationBoundsNanos.size()], 1u);
  EXPECT_EQ(durations.sum, 11'000'010'001u);
}

TEST(WorkerCountersTest, TheCountsOfTwoProcessesAddUp) {
  WorkerCounts total;
  WorkerCounts one;
  CountDouble(one.flops_bits[1][0], 0.25);
  Count(one.device_errors[kDeviceErrorClasses - 1][1], 2);  // The last word.
  Count(one.operand_bytes[0], 10);                          // The first after the doubles.
  AddTo(total, one);
  AddTo(total, one);
  EXPECT_EQ(total.flops(Op::kDense, ProductType::kE4m3), 0.5);
  EXPECT_EQ(total.device_errors[kDeviceErrorClasses - 1][1], 4u);
  EXPECT_EQ(total.operand_bytes[0], 20u);
}

TEST(WorkerCountersTest, MemoryOfAnotherLayoutIsRefused) {
  absl::StatusOr<UniqueFd> other = CreateSealedMemory(1 << 20);
  ASSERT_TRUE(other.ok());
  const absl::Status status = WorkerCounters::Open(*other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("worker counters: expected a layout of"), absl::string_view::npos) << status;
}

TEST(WorkerCountersTest, NoDescriptorAndAShortOneAreRefused) {
  EXPECT_EQ(WorkerCounters::Open(UniqueFd()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WorkerCounters::Open(*CreateSealedMemory(64)).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gemmd
