// SPDX-License-Identifier: Apache-2.0
#include "gpu/completion_sink.h"

#include <gtest/gtest.h>

#include <thread>

namespace gemmd {
namespace {

JobCompletion CompletionOf(uint64_t job_id) {
  JobCompletion completion;
  completion.job_id = job_id;
  return completion;
}

TEST(CompletionSinkTest, AFullRingKeepsABacklogInOrder) {
  auto ring = JobRing::Create(2);
  ASSERT_TRUE(ring.ok());
  CompletionSink sink(*ring);
  CompletionReader reader(ring->completions(), ring->completion_slots(), ring->slots());
  for (uint64_t id = 1; id <= 5; ++id) sink.Write(CompletionOf(id));
  EXPECT_TRUE(sink.has_backlog());
  for (uint64_t id = 1; id <= 5; ++id) {
    JobCompletion completion;
    ASSERT_EQ(reader.Read(completion), RingRead::kItem);
    EXPECT_EQ(completion.job_id, id);
    sink.Flush();
  }
  EXPECT_FALSE(sink.has_backlog());
}

TEST(CompletionSinkTest, WritersFromManyThreadsLoseNothing) {
  auto ring = JobRing::Create(4);
  ASSERT_TRUE(ring.ok());
  CompletionSink sink(*ring);
  CompletionReader reader(ring->completions(), ring->completion_slots(), ring->slots());
  constexpr int kEach = 500;
  const auto write = [&] {
    for (int i = 0; i < kEach; ++i) sink.Write(CompletionOf(1));
  };
  std::thread first(write);
  std::thread second(write);
  for (int got = 0; got < 2 * kEach;) {
    JobCompletion completion;
    sink.Flush();
    if (reader.Read(completion) == RingRead::kItem) ++got;
  }
  first.join();
  second.join();
  EXPECT_FALSE(sink.has_backlog());
}

}  // namespace
}  // namespace gemmd
