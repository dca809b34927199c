// SPDX-License-Identifier: Apache-2.0
#include "proto/job_ring.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace gemmd {
namespace {

static_assert(offsetof(RingHeader, submissions) == 64 && offsetof(RingHeader, completions) == 256);
static_assert(offsetof(RingDirection, consumed) == 64 && offsetof(RingDirection, doorbell) == 128);
static_assert(offsetof(RingDirection, sleeping) == 132);

constexpr uint64_t kPatienceNanos = 30'000'000'000;

SubmissionWriter WriterOf(const JobRing& ring) { return {ring.submissions(), ring.descriptor_slots(), ring.slots()}; }

// Waits for the next item; false on a broken ring or when patience ends.
template <typename Reader, typename Item>
bool ReadNext(Reader& reader, Item& item, SpinPolicy spin) {
  const uint64_t deadline = MonotonicNanos() + kPatienceNanos;
  while (true) {
    const RingRead read = reader.Read(item);
    if (read != RingRead::kEmpty) return read == RingRead::kItem;
    if (MonotonicNanos() > deadline) return false;
    reader.Wait(deadline, spin);
  }
}

TEST(JobRingTest, ItemsComeOutInOrder) {
  const auto ring = JobRing::Create(4);
  SubmissionWriter writer = WriterOf(*ring);
  SubmissionReader reader(ring->submissions(), ring->descriptor_slots(), ring->slots());
  JobDescriptor job;
  EXPECT_EQ(reader.Read(job), RingRead::kEmpty);
  for (uint64_t id = 1; id <= 10; ++id) {
    job.job_id = id;
    EXPECT_TRUE(writer.Write(job));
    JobDescriptor got;
    EXPECT_EQ(reader.Read(got), RingRead::kItem);
    EXPECT_EQ(got.job_id, id);
  }
}

TEST(JobRingTest, AFullRingRefuses) {
  const auto ring = JobRing::Create(2);
  SubmissionWriter writer = WriterOf(*ring);
  EXPECT_TRUE(writer.Write({}));
  EXPECT_TRUE(writer.Write({}));
  EXPECT_FALSE(writer.Write({}));
}

TEST(JobRingTest, AnImpossibleWrittenPositionBreaksTheRing) {
  const auto ring = JobRing::Create(2);
  SubmissionReader reader(ring->submissions(), ring->descriptor_slots(), ring->slots());
  JobDescriptor job;
  for (const uint64_t position : {uint64_t{3}, ~uint64_t{0}, uint64_t{1} << 63}) {
    ring->submissions()->written.store(position);
    EXPECT_EQ(reader.Read(job), RingRead::kBroken);
  }
}

TEST(JobRingTest, AnImpossibleConsumedPositionOnlyFillsTheRing) {
  const auto ring = JobRing::Create(2);
  CompletionWriter writer(ring->completions(), ring->completion_slots(), ring->slots());
  ring->completions()->consumed.store(5);
  EXPECT_FALSE(writer.Write({}));
  ring->completions()->consumed.store(0);
  EXPECT_TRUE(writer.Write({}));
}

TEST(JobRingTest, SlotCountsAreChecked) {
  for (const uint32_t slots : {0u, 3u, kMaxRingSlots * 2}) EXPECT_FALSE(JobRing::Create(slots).ok());
  EXPECT_TRUE(JobRing::Create(1).ok());
}

TEST(JobRingTest, OpenRefusesWhatIsNoRing) {
  EXPECT_FALSE(JobRing::Open(UniqueFd()).ok());
  EXPECT_FALSE(JobRing::Open(*CreateSealedMemory(64)).ok());
  EXPECT_FALSE(JobRing::Open(*CreateSealedMemory(4096)).ok());
  const auto ring = JobRing::Create(4);
  auto* header = reinterpret_cast<RingHeader*>(ring->submissions()) - 0;
  auto* slots = reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(header) - offsetof(RingHeader, submissions) +
                                            offsetof(RingHeader, slots));
  for (const uint32_t claim : {0u, 3u, 8u, kMaxRingSlots, ~0u}) {
    *slots = claim;
    EXPECT_FALSE(JobRing::Open(UniqueFd(dup(ring->fd()))).ok()) << claim;
  }
  *slots = 4;
  EXPECT_TRUE(JobRing::Open(UniqueFd(dup(ring->fd()))).ok());
}

TEST(JobRingTest, WaitEndsAtItsDeadline) {
  const auto ring = JobRing::Create(2);
  SubmissionReader reader(ring->submissions(), ring->descriptor_slots(), ring->slots());
  for (const uint64_t spin_ns : {0, 1'000'000'000}) {
    const uint64_t deadline = MonotonicNanos() + 1'000'000;
    reader.Wait(deadline, {spin_ns});
    EXPECT_GE(MonotonicNanos(), deadline);
  }
}

TEST(JobRingTest, InterruptEndsTheCurrentOrTheNextWait) {
  const auto ring = JobRing::Create(2);
  SubmissionReader reader(ring->submissions(), ring->descriptor_slots(), ring->slots());
  reader.Interrupt();
  reader.Wait(0, {});
  std::thread other([&] { reader.Interrupt(); });
  reader.Wait(0, {});
  other.join();
}

// A ping-pong: each side sleeps (or spins) for each message, so a single lost wake-up ends it.
void PingPong(JobRing& ring, int rounds, SpinPolicy spin) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto opened = JobRing::Open(UniqueFd(dup(ring.fd())));
    if (!opened.ok()) _exit(1);
    SubmissionReader reader(opened->submissions(), opened->descriptor_slots(), opened->slots());
    CompletionWriter writer(opened->completions(), opened->completion_slots(), opened->slots());
    for (int i = 0; i < rounds; ++i) {
      JobDescriptor job;
      if (!ReadNext(reader, job, spin)) _exit(2);
      JobCompletion completion;
      completion.job_id = job.job_id + 1;
      if (!writer.Write(completion)) _exit(3);
    }
    _exit(0);
  }
  SubmissionWriter writer = WriterOf(ring);
  CompletionReader reader(ring.completions(), ring.completion_slots(), ring.slots());
  JobDescriptor job;
  for (int i = 0; i < rounds; ++i) {
    job.job_id = static_cast<uint64_t>(i);
    ASSERT_TRUE(writer.Write(job));
    JobCompletion completion;
    ASSERT_TRUE(ReadNext(reader, completion, spin)) << "lost after " << i;
    ASSERT_EQ(completion.job_id, job.job_id + 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(JobRingTest, TwoProcessesTakeTurnsSleeping) {
  auto ring = JobRing::Create(4);
  PingPong(*ring, 3000, {});
}

TEST(JobRingTest, TwoProcessesTakeTurnsSpinning) {
  auto ring = JobRing::Create(4);
  PingPong(*ring, 3000, {20'000});
}

TEST(JobRingTest, NoWakeIsLostUnderAStream) {
  const auto ring = JobRing::Create(8);
  constexpr uint64_t kItems = 50'000;
  std::thread consumer([&] {
    SubmissionReader reader(ring->submissions(), ring->descriptor_slots(), ring->slots());
    for (uint64_t id = 0; id < kItems; ++id) {
      JobDescriptor job;
      ASSERT_TRUE(ReadNext(reader, job, {id % 3 * 500}));
      ASSERT_EQ(job.job_id, id);
    }
  });
  SubmissionWriter writer = WriterOf(*ring);
  JobDescriptor job;
  for (uint64_t id = 0; id < kItems;) {
    job.job_id = id;
    if (writer.Write(job)) {
      ++id;
    } else {
      std::this_thread::yield();
    }
  }
  consumer.join();
}

}  // namespace
}  // namespace gemmd
