// SPDX-License-Identifier: Apache-2.0
#include "gpu/batcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace gemmd {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;
constexpr uint64_t kStart = 1000 * kMillisecond;

struct JobSpec {
  uint64_t id = 0;
  uint64_t session = 1;
  uint8_t priority = 0;
  uint64_t deadline_ns = 0;
  uint64_t weights = 0;  // Offset of B; 0: a quantize job, which never merges.
  int64_t rows = 16;
};

Job MakeJob(const JobSpec& spec) {
  Job job;
  job.job_id = spec.id;
  job.ring = 1;
  job.session = spec.session;
  job.priority = spec.priority;
  job.deadline_ns = spec.deadline_ns;
  job.gemm.op = spec.weights == 0 ? Op::kQuantize : Op::kDense;
  job.gemm.m = spec.rows;
  job.gemm.operand(OperandIndex::kB).region = 7;
  job.gemm.operand(OperandIndex::kB).offset = spec.weights;
  return job;
}

Batcher MakeBatcher(BatchLimits limits = {}) {
  return Batcher(limits, [](const Gemm& gemm) { return static_cast<uint64_t>(gemm.m) * 1000; });
}

std::vector<uint64_t> Ids(const std::optional<Batch>& batch) {
  std::vector<uint64_t> ids;
  if (batch)
    std::transform(batch->jobs.begin(), batch->jobs.end(), std::back_inserter(ids),
                   [](const Job& j) { return j.job_id; });
  return ids;
}

using List = std::vector<uint64_t>;

TEST(BatcherTest, NothingWaitsAtFirst) {
  Batcher batcher = MakeBatcher();
  EXPECT_FALSE(batcher.Take(kStart).has_value());
  EXPECT_EQ(batcher.EarliestDeadline(), 0u);
}

TEST(BatcherTest, JobsOnTheSameWeightsGoTogether) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1, .weights = 64}), kStart);
  batcher.Add(MakeJob({.id = 2, .weights = 128}), kStart);
  batcher.Add(MakeJob({.id = 3, .session = 2, .weights = 64}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{1, 3}));
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{2}));
  EXPECT_EQ(batcher.queued_jobs(), 0u);
  EXPECT_EQ(batcher.queued_predicted_ns(), 0u);
}

BatchClose CloseOf(BatchLimits limits, const JobSpec& spec, int jobs) {
  Batcher batcher = MakeBatcher(limits);
  for (int i = 0; i < jobs; ++i) batcher.Add(MakeJob(spec), kStart);
  return batcher.Take(kStart)->close;
}

TEST(BatcherTest, ABatchSaysWhatKeptFurtherJobsOut) {
  EXPECT_EQ(CloseOf({}, {.weights = 64}, 1), BatchClose::kDrained);
  EXPECT_EQ(CloseOf({}, {.weights = 64}, 3), BatchClose::kDrained);
  EXPECT_EQ(CloseOf({}, {.weights = 0}, 3), BatchClose::kUnmergeable);
  EXPECT_EQ(CloseOf({.merging = false}, {.weights = 64}, 3), BatchClose::kUnmergeable);
  EXPECT_EQ(CloseOf({.max_batch_jobs = 2}, {.weights = 64}, 2), BatchClose::kDrained);
  EXPECT_EQ(CloseOf({.max_batch_jobs = 2}, {.weights = 64}, 3), BatchClose::kJobLimit);
  EXPECT_EQ(CloseOf({.max_batch_rows = 40}, {.weights = 64, .rows = 20}, 2), BatchClose::kDrained);
  EXPECT_EQ(CloseOf({.max_batch_rows = 40}, {.weights = 64, .rows = 20}, 3), BatchClose::kRowLimit);
}

TEST(BatcherTest, MergingCanBeTurnedOff) {
  Batcher batcher = MakeBatcher({.merging = false});
  batcher.Add(MakeJob({.id = 1, .weights = 64}), kStart);
  batcher.Add(MakeJob({.id = 2, .weights = 64}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{1}));
}

TEST(BatcherTest, JobsWithoutWeightsNeverMerge) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1}), kStart);
  batcher.Add(MakeJob({.id = 2}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{1}));
}

TEST(BatcherTest, MaskedJobsWhoseRowsOnlyTheDeviceKnowsNeverMerge) {
  Job job = MakeJob({.id = 1, .weights = 64});
  job.gemm.op = Op::kMGroupedMasked;
  EXPECT_TRUE(BatchKeyOf(job.gemm).has_value());
  job.gemm.masked_on_device = true;
  EXPECT_FALSE(BatchKeyOf(job.gemm).has_value());
}

TEST(BatcherTest, ABatchIsBoundedInJobsAndRows) {
  Batcher batcher = MakeBatcher({.max_batch_jobs = 3, .max_batch_rows = 64});
  for (uint64_t id = 1; id <= 5; ++id) batcher.Add(MakeJob({.id = id, .weights = 64}), kStart);
  batcher.Add(MakeJob({.id = 6, .weights = 64, .rows = 60}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{1, 2, 3}));
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{4, 5}));
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{6}));
}

TEST(BatcherTest, EveryPartOfTheKeyKeepsJobsApart) {
  const auto key = [](const std::function<void(Gemm&)>& change) {
    Job job = MakeJob({.id = 1, .weights = 64});
    change(job.gemm);
    return BatchKeyOf(job.gemm);
  };
  const auto plain = key([](Gemm&) {});
  EXPECT_EQ(plain, key([](Gemm& g) { g.m = 999; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.op = Op::kMGroupedMasked; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.scaling = Scaling::k1D1D; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.accumulate = true; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.n = 5; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.k = 5; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.groups = 5; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.operand(OperandIndex::kA).dtype = DType::kBf16; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.operand(OperandIndex::kD).dtype = DType::kBf16; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.operand(OperandIndex::kB).region = 5; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.operand(OperandIndex::kB).strides[0] = 5; }));
  EXPECT_NE(plain, key([](Gemm& g) { g.operand(OperandIndex::kSfb).offset = 5; }));
}

TEST(BatcherTest, HigherPriorityGoesFirst) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1}), kStart);
  batcher.Add(MakeJob({.id = 2, .priority = 3}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{2}));
}

TEST(BatcherTest, ANearDeadlineGoesFirstAndAFarOneDoesNot) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1}), kStart);
  batcher.Add(MakeJob({.id = 2, .deadline_ns = kStart + 900 * kMillisecond}), kStart);
  batcher.Add(MakeJob({.id = 3, .deadline_ns = kStart + 9 * kMillisecond}), kStart);
  batcher.Add(MakeJob({.id = 4, .deadline_ns = kStart + 8 * kMillisecond}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{4}));
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{3}));
  EXPECT_EQ(Ids(batcher.Take(kStart)), (List{1}));
}

TEST(BatcherTest, AStarvingJobGoesBeforeAllOthers) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1}), kStart);
  batcher.Add(MakeJob({.id = 2, .priority = 3}), kStart);
  EXPECT_EQ(Ids(batcher.Take(kStart + BatchLimits{}.starvation_ns + 1)), (List{1}));
}

TEST(BatcherTest, ExpiredJobsAreNeverTaken) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1, .deadline_ns = kStart + 5, .weights = 64}), kStart);
  batcher.Add(MakeJob({.id = 2, .weights = 64}), kStart);
  EXPECT_EQ(batcher.EarliestDeadline(), kStart + 5);
  EXPECT_EQ(Ids(batcher.Take(kStart + 5)), (List{2}));
  const std::vector<Job> expired = batcher.TakeExpired(kStart + 5);
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_EQ(expired[0].job_id, 1u);
  EXPECT_EQ(batcher.queued_jobs(), 0u);
}

TEST(BatcherTest, CancelRemovesAWaitingJobOnce) {
  Batcher batcher = MakeBatcher();
  batcher.Add(MakeJob({.id = 1, .weights = 64}), kStart);
  EXPECT_FALSE(batcher.Cancel(2, 1).has_value());
  EXPECT_TRUE(batcher.Cancel(1, 1).has_value());
  EXPECT_FALSE(batcher.Cancel(1, 1).has_value());
  EXPECT_FALSE(batcher.Take(kStart).has_value());
}

TEST(BatcherTest, AFullQueueRefusesAndLeavesTheJob) {
  Batcher batcher = MakeBatcher({.max_queued_jobs = 1});
  EXPECT_TRUE(batcher.Add(MakeJob({.id = 1}), kStart));
  Job job = MakeJob({.id = 2});
  EXPECT_FALSE(batcher.Add(std::move(job), kStart));
  EXPECT_EQ(job.job_id, 2u);
}

TEST(BatcherTest, SessionsShareTheDeviceByPredictedTime) {
  Batcher batcher = MakeBatcher({.merging = false});
  uint64_t id = 0;
  // One session with jobs four times as long as the other's, both with more than enough of them.
  for (int i = 0; i < 400; ++i) batcher.Add(MakeJob({.id = ++id, .session = 1, .rows = 64}), kStart);
  for (int i = 0; i < 400; ++i) batcher.Add(MakeJob({.id = ++id, .session = 2, .rows = 16}), kStart);
  std::map<uint64_t, int64_t> rows;
  for (int i = 0; i < 300; ++i) {
    const std::optional<Batch> batch = batcher.Take(kStart);
    rows[batch->jobs[0].session] += batch->jobs[0].gemm.m;
    EXPECT_LE(std::abs(rows[1] - rows[2]), 64 + 16);  // Never further apart than one job of each.
  }
}

// Random jobs, cancellations and passing time: every job leaves exactly once; what leaves in a batch has not expired
// and has one key; nobody waits beyond the starvation bound while the device is served.
TEST(BatcherTest, RandomJobsAreNeitherLostNorMixedNorStarved) {
  std::mt19937_64 random(7);
  constexpr uint64_t kServeNanos = kMillisecond / 10;
  Batcher batcher = MakeBatcher({.max_queued_jobs = 200, .max_batch_jobs = 8, .starvation_ns = 50 * kMillisecond});
  std::map<uint64_t, uint64_t> waiting;  // Id to time of arrival.
  uint64_t now = kStart;
  uint64_t next_id = 1;
  for (int step = 0; step < 20000; ++step) {
    now += random() % kServeNanos;
    if (random() % 2 == 0 && waiting.size() < 150) {
      const JobSpec spec{.id = next_id++,
                         .session = random() % 5,
                         .priority = static_cast<uint8_t>(random() % 4),
                         .deadline_ns = random() % 3 == 0 ? now + random() % (40 * kMillisecond) : 0,
                         .weights = random() % 4 * 64,
                         .rows = static_cast<int64_t>(random() % 100)};
      ASSERT_TRUE(batcher.Add(MakeJob(spec), now));
      waiting[spec.id] = now;
    }
    if (random() % 10 == 0 && !waiting.empty()) {
      ASSERT_TRUE(batcher.Cancel(1, waiting.begin()->first).has_value() || batcher.EarliestDeadline() <= now);
      waiting.erase(waiting.begin()->first);
    }
    for (const Job& job : batcher.TakeExpired(now)) {
      EXPECT_LE(job.deadline_ns, now);
      ASSERT_EQ(waiting.erase(job.job_id), 1u);
    }
    const std::optional<Batch> batch = batcher.Take(now);
    for (const Job& job : batch ? batch->jobs : std::vector<Job>{}) {
      EXPECT_TRUE(job.deadline_ns == 0 || job.deadline_ns > now);
      EXPECT_EQ(BatchKeyOf(job.gemm), BatchKeyOf(batch->jobs[0].gemm));
      EXPECT_LE(now - waiting[job.job_id], 50 * kMillisecond + 200 * kServeNanos);
      ASSERT_EQ(waiting.erase(job.job_id), 1u);
    }
    ASSERT_EQ(batcher.queued_jobs(), waiting.size());
  }
}

}  // namespace
}  // namespace gemmd
