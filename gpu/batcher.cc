// SPDX-License-Identifier: Apache-2.0
#include "gpu/batcher.h"

#include <algorithm>
#include <iterator>

namespace gemmd {

Batcher::Batcher(BatchLimits limits, PredictNanos predict) : limits_(limits), predict_(std::move(predict)) {}

bool Batcher::Add(Job&& job, uint64_t now_ns) {
  if (queued_jobs() >= limits_.max_queued_jobs) return false;
  const Sequence sequence = next_sequence_++;
  Waiting waiting;
  waiting.added_ns = now_ns;
  waiting.predicted_ns = std::max<uint64_t>(predict_(job.gemm), 1);
  if (limits_.merging) waiting.key = BatchKeyOf(job.gemm);

  Level& level = LevelOf(job);
  level.fair.Add(job.session, sequence);
  if (job.deadline_ns != 0) level.deadlines.emplace(job.deadline_ns, sequence);
  if (waiting.key) by_key_[*waiting.key].insert(sequence);
  by_name_.try_emplace({job.ring, job.job_id}, sequence);
  queued_predicted_ns_ += waiting.predicted_ns;
  waiting.job = std::move(job);
  waiting_.emplace_hint(waiting_.end(), sequence, std::move(waiting));
  return true;
}

std::optional<Batch> Batcher::Take(uint64_t now_ns) {
  DropExpired(now_ns);
  if (waiting_.empty()) return std::nullopt;
  const Sequence first = ChooseNext(now_ns);
  const Companions companions = CompanionsOf(first);
  Batch batch;
  batch.close = companions.close;
  batch.jobs.reserve(companions.sequences.size() + 1);
  batch.jobs.push_back(Remove(first, Leaving::kToDevice));
  for (const Sequence sequence : companions.sequences) batch.jobs.push_back(Remove(sequence, Leaving::kToDevice));
  return batch;
}

std::vector<Job> Batcher::TakeExpired(uint64_t now_ns) {
  DropExpired(now_ns);
  return std::exchange(expired_, {});
}

std::vector<Job> Batcher::TakeAll() {
  std::vector<Job> jobs = std::exchange(expired_, {});
  while (!waiting_.empty()) jobs.push_back(Remove(waiting_.begin()->first, Leaving::kDropped));
  return jobs;
}

std::optional<Job> Batcher::Cancel(uint64_t ring, uint64_t job_id) {
  const auto found = by_name_.find(JobName{ring, job_id});
  if (found == by_name_.end()) return std::nullopt;
  return Remove(found->second, Leaving::kDropped);
}

uint64_t Batcher::EarliestDeadline() const {
  uint64_t earliest = 0;
  for (const Level& level : levels_) {
    if (level.deadlines.empty()) continue;
    const uint64_t deadline = level.deadlines.begin()->first;
    if (earliest == 0 || deadline < earliest) earliest = deadline;
  }
  return earliest;
}

void Batcher::DropExpired(uint64_t now_ns) {
  for (Level& level : levels_) {
    while (!level.deadlines.empty() && level.deadlines.begin()->first <= now_ns) {
      expired_.push_back(Remove(level.deadlines.begin()->second, Leaving::kDropped));
    }
  }
}

// Requires: something waits.
Batcher::Sequence Batcher::ChooseNext(uint64_t now_ns) const {
  const auto& [oldest, waiting] = *waiting_.begin();
  if (now_ns - waiting.added_ns > limits_.starvation_ns) return oldest;
  const auto level = std::find_if(levels_.rbegin(), levels_.rend(), [](const Level& l) { return !l.fair.empty(); });
  if (!level->deadlines.empty()) {
    const auto& [deadline, sequence] = *level->deadlines.begin();
    if (deadline - now_ns <= limits_.near_deadline_ns) return sequence;
  }
  return level->fair.Front();
}

// The jobs that go along.
Batcher::Companions Batcher::CompanionsOf(Sequence first) const {
  Companions companions;
  const Waiting& head = waiting_.at(first);
  if (!head.key) return companions;
  int64_t rows = RowsOf(head.job.gemm);
  for (const Sequence sequence : by_key_.at(*head.key)) {
    if (sequence == first) continue;
    if (companions.sequences.size() + 1 >= limits_.max_batch_jobs) {
      companions.close = BatchClose::kJobLimit;
      return companions;
    }
    const int64_t more_rows = RowsOf(waiting_.at(sequence).job.gemm);
    // The first that does not fit ends the batch: looking further would cost time for jobs that go next anyway.
    if (rows >= limits_.max_batch_rows || rows + more_rows > limits_.max_batch_rows) {
      companions.close = BatchClose::kRowLimit;
      return companions;
    }
    rows += more_rows;
    companions.sequences.push_back(sequence);
  }
  companions.close = BatchClose::kDrained;
  return companions;
}

Job Batcher::Remove(Sequence sequence, Leaving leaving) {
  const auto found = waiting_.find(sequence);
  Waiting& waiting = found->second;
  Job job = std::move(waiting.job);
  Level& level = LevelOf(job);
  if (leaving == Leaving::kToDevice) {
    level.fair.Serve(job.session, sequence, waiting.predicted_ns);
  } else {
    level.fair.Remove(job.session, sequence);
  }
  if (job.deadline_ns != 0) level.deadlines.erase({job.deadline_ns, sequence});
  if (waiting.key) {
    const auto same_key = by_key_.find(*waiting.key);
    same_key->second.erase(sequence);
    if (same_key->second.empty()) by_key_.erase(same_key);
  }
  const auto name = by_name_.find(JobName{job.ring, job.job_id});
  // A submitter that breaks the rule of unique ids can only cancel the first of its jobs of that id.
  if (name != by_name_.end() && name->second == sequence) by_name_.erase(name);
  queued_predicted_ns_ -= waiting.predicted_ns;
  waiting_.erase(found);
  return job;
}

}  // namespace gemmd
