// SPDX-License-Identifier: Apache-2.0
#include "gpu/fair_queue.h"

#include <gtest/gtest.h>

namespace gemmd {
namespace {

TEST(FairQueueTest, TheSessionThatIsBehindGoesFirst) {
  FairQueue queue;
  for (uint64_t job = 1; job <= 4; ++job) queue.Add(job % 2, job);
  queue.Serve(1, 1, 100);
  EXPECT_EQ(queue.Front(), 2u);
  queue.Serve(0, 2, 10);
  EXPECT_EQ(queue.Front(), 4u);
}

TEST(FairQueueTest, IdleTimeIsNotSavedUp) {
  FairQueue queue;
  for (uint64_t job = 1; job <= 20; ++job) queue.Add(1, job);
  for (uint64_t job = 1; job <= 10; ++job) queue.Serve(1, job, 100);
  queue.Add(2, 21);
  queue.Add(2, 22);
  queue.Add(2, 23);
  queue.Serve(2, 21, 100);
  queue.Serve(2, 22, 100);
  EXPECT_EQ(queue.Front(), 11u);  // Two jobs ahead would be the savings of ten.
}

TEST(FairQueueTest, ARemovedJobCostsNothing) {
  FairQueue queue;
  queue.Add(1, 1);
  queue.Add(1, 2);
  queue.Add(2, 3);
  queue.Remove(1, 1);
  EXPECT_EQ(queue.Front(), 2u);
}

TEST(FairQueueTest, SessionsThatLeaveAreForgotten) {
  FairQueue queue;
  queue.Add(0, 0);  // Keeps the queue busy.
  for (uint64_t session = 1; session < 3 * FairQueue::kMaxIdleSessions; ++session) {
    queue.Add(session, session);
    queue.Serve(session, session, 100);
  }
  EXPECT_LE(queue.remembered_sessions(), FairQueue::kMaxIdleSessions + 1);
  queue.Serve(0, 0, 100);
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.remembered_sessions(), 0u);
}

}  // namespace
}  // namespace gemmd
