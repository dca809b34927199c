// SPDX-License-Identifier: Apache-2.0
// Who goes together, and when. Pure: no threads and no clock; the worker's loop passes time in.
//
// Jobs with one BatchKey may share a launch: dense jobs on one resident B, m-grouped and masked jobs on one expert
// stack. The rows of such a batch are those of its jobs one after another, so nothing depends on who else is in it. A
// job goes to the device as soon as the device can take it; whatever waits at that moment and has the same key goes
// along (up to BatchLimits), so merging never adds delay.
//
// Order: higher priority first; within a priority a job whose deadline is near goes by earliest deadline; otherwise the
// session that has received least predicted device time goes first (start-time fair queueing), its jobs in order of
// arrival. A job that has waited longer than `starvation_ns` goes before all others.
#ifndef GEMMD_GPU_BATCHER_H_
#define GEMMD_GPU_BATCHER_H_

#include "gpu/batch_key.h"
#include "gpu/fair_queue.h"
#include "gpu/job.h"
#include "gpu/job_check.h"

#include "absl/container/flat_hash_map.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace gemmd {

struct BatchLimits {
  bool merging = true;
  size_t max_queued_jobs = 4096;  // More are refused: kQueueFull.
  size_t max_batch_jobs = 256;    // Jobs in one launch.
  int64_t max_batch_rows = 8192;  // Rows in one merged launch; more rows gain nothing from sharing weights.
  uint64_t starvation_ns = 1'000'000'000;
  // A deadline nearer than this is urgent: some launches of a few milliseconds may be under way before its turn comes.
  uint64_t near_deadline_ns = 20'000'000;
};

// Each call costs O(log n) in the jobs that wait. Not thread-safe: the worker's loop owns it.
class Batcher {
 public:
  using PredictNanos = std::function<uint64_t(const Gemm&)>;

  Batcher(BatchLimits limits, PredictNanos predict);

  // False if the queue is full; the job is then left untouched. `now_ns` never goes back from call to call.
  bool Add(Job&& job, uint64_t now_ns);

  // The next batch, or none if nothing waits. Never contains a job whose deadline has passed at `now_ns`; those are
  // left for TakeExpired.
  std::optional<Batch> Take(uint64_t now_ns);

  // Removes and returns the jobs whose deadline has passed.
  std::vector<Job> TakeExpired(uint64_t now_ns);

  // Removes and returns everything that waits.
  std::vector<Job> TakeAll();

  // Removes and returns a waiting job.
  std::optional<Job> Cancel(uint64_t ring, uint64_t job_id);

  // The earliest deadline of a waiting job; 0 if none has one.
  uint64_t EarliestDeadline() const;

  size_t queued_jobs() const { return waiting_.size() + expired_.size(); }
  uint64_t queued_predicted_ns() const { return queued_predicted_ns_; }

 private:
  using Sequence = uint64_t;  // Order of arrival.

  struct Waiting {
    Job job;
    std::optional<BatchKey> key;
    uint64_t added_ns = 0;
    uint64_t predicted_ns = 0;
  };
  struct Level {
    FairQueue fair;
    std::set<std::pair<uint64_t, Sequence>> deadlines;
  };
  using JobName = std::pair<uint64_t, uint64_t>;  // Ring and job_id.
  struct Companions {
    std::vector<Sequence> sequences;  // In order of arrival.
    BatchClose close = BatchClose::kUnmergeable;
  };
  enum class Leaving : uint8_t { kToDevice, kDropped };

  Level& LevelOf(const Job& job) { return levels_[job.priority]; }
  void DropExpired(uint64_t now_ns);
  Sequence ChooseNext(uint64_t now_ns) const;
  Companions CompanionsOf(Sequence first) const;
  Job Remove(Sequence sequence, Leaving leaving);

  const BatchLimits limits_;
  const PredictNanos predict_;
  Sequence next_sequence_ = 1;
  uint64_t queued_predicted_ns_ = 0;
  std::map<Sequence, Waiting> waiting_;
  std::array<Level, kMaxPriority + 1> levels_;
  absl::flat_hash_map<BatchKey, std::set<Sequence>> by_key_;
  absl::flat_hash_map<JobName, Sequence> by_name_;
  std::vector<Job> expired_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_BATCHER_H_
