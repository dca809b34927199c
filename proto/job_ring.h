// SPDX-License-Identifier: Apache-2.0
// The job ring: shared memory with a submission ring (JobDescriptor) and a completion ring (JobCompletion), each with
// one writer process, one reader process and a doorbell. The front end and its worker share one; on the fast path a
// client and the worker do.
//
// The submitting side is untrusted. The executing side therefore keeps its own positions and sizes, reads each shared
// word once, copies a descriptor out before looking at it, and treats an impossible position as a broken ring.
//
// Doorbells: a reader spins for a while, then announces that it sleeps and waits on a futex; a writer wakes it only if
// it announced. The announcement and the position are ordered by sequentially consistent fences on both sides, so that
// either the reader sees the new position or the writer sees the sleeper.
#ifndef GEMMD_PROTO_JOB_RING_H_
#define GEMMD_PROTO_JOB_RING_H_

#include "proto/job.h"
#include "proto/shared_memory.h"
#include "proto/unique_fd.h"

#include "absl/status/statusor.h"

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace gemmd {

inline constexpr uint64_t kRingMagic = 0x33676e69722d6d67;  // "gm-ring3", little-endian.
inline constexpr uint32_t kDefaultRingSlots = 1024;
inline constexpr uint32_t kMaxRingSlots = 65536;

// One direction. Positions count slots since the ring's start and never wrap in practice (2^64).
struct RingDirection {
  alignas(64) std::atomic<uint64_t> written;   // By the writer: slots published so far.
  alignas(64) std::atomic<uint64_t> consumed;  // By the reader: slots taken so far.
  alignas(64) std::atomic<uint32_t> doorbell;  // Futex word: changes at every wake.
  std::atomic<uint32_t> sleeping;              // By the reader: 1 while it waits on the futex.
};
static_assert(sizeof(RingDirection) == 192);
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint64_t>) == 8);
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);

// Followed by `slots` JobDescriptors, then `slots` JobCompletions.
struct RingHeader {
  uint64_t magic;
  uint32_t slots;  // A power of two.
  uint32_t descriptor_bytes;
  uint32_t completion_bytes;
  uint32_t reserved[11];
  RingDirection submissions;
  RingDirection completions;
};
static_assert(sizeof(RingHeader) == 448 && alignof(RingHeader) == 64);

// CLOCK_MONOTONIC in nanoseconds: the clock of deadlines in descriptors.
uint64_t MonotonicNanos();

// Half a microsecond in which another hardware thread of this core gets on, on which perhaps the peer works: for a
// thread that polls the network, between two looks.
void PauseBetweenLooks();

// How long a waiting reader spins before it sleeps. Zero on a machine with one core.
struct SpinPolicy {
  uint64_t spin_ns = 0;
};

// The writing half of one direction over a mapped ring. Not thread-safe.
template <typename T>
class RingWriter {
 public:
  RingWriter() = default;
  RingWriter(RingDirection* direction, T* slots, uint32_t slot_count)
      : direction_(direction), slots_(slots), slot_count_(slot_count) {}

  // Publishes `item` and wakes a sleeping reader; false if the ring is full.
  bool Write(const T& item);

 private:
  RingDirection* direction_ = nullptr;
  T* slots_ = nullptr;
  uint32_t slot_count_ = 0;
  uint64_t written_ = 0;
};

enum class RingRead : uint8_t { kItem, kEmpty, kBroken };

// The reading half. Read and Wait are for one thread; Interrupt may be called from any.
template <typename T>
class RingReader {
 public:
  RingReader() = default;
  RingReader(RingDirection* direction, const T* slots, uint32_t slot_count)
      : direction_(direction), slots_(slots), slot_count_(slot_count) {}

  // Copies the next item out. kBroken: the writer published an impossible position; the ring must be given up.
  RingRead Read(T& item);

  // Returns when there may be something to read, after Interrupt, or at `deadline_ns` (CLOCK_MONOTONIC; 0: never).
  void Wait(uint64_t deadline_ns, SpinPolicy spin);

  // Makes the current or the next Wait return.
  void Interrupt();

 private:
  bool HasNews() const;

  RingDirection* direction_ = nullptr;
  const T* slots_ = nullptr;
  uint32_t slot_count_ = 0;
  uint64_t consumed_ = 0;
  std::atomic<bool> interrupted_{false};
};

// A ring's memory. Create on the submitting side, Open on the executing side with the descriptor that came over a
// socket.
class JobRing {
 public:
  // `slots`: a power of two, at most kMaxRingSlots. Errors: INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
  static absl::StatusOr<JobRing> Create(uint32_t slots);

  // Errors: INVALID_ARGUMENT if the memory is not sealed, too small, or its header does not describe this layout.
  static absl::StatusOr<JobRing> Open(UniqueFd fd);

  JobRing(JobRing&&) noexcept = default;
  JobRing& operator=(JobRing&&) noexcept = default;

  int fd() const { return fd_.get(); }
  uint32_t slots() const { return slots_; }
  RingDirection* submissions() const { return &header()->submissions; }
  RingDirection* completions() const { return &header()->completions; }
  JobDescriptor* descriptor_slots() const;
  JobCompletion* completion_slots() const;

 private:
  JobRing(UniqueFd fd, SharedMapping mapping, uint32_t slots);
  RingHeader* header() const { return reinterpret_cast<RingHeader*>(mapping_.data()); }

  UniqueFd fd_;
  SharedMapping mapping_;
  uint32_t slots_ = 0;
};

using SubmissionWriter = RingWriter<JobDescriptor>;
using SubmissionReader = RingReader<JobDescriptor>;
using CompletionWriter = RingWriter<JobCompletion>;
using CompletionReader = RingReader<JobCompletion>;

extern template class RingWriter<JobDescriptor>;
extern template class RingWriter<JobCompletion>;
extern template class RingReader<JobDescriptor>;
extern template class RingReader<JobCompletion>;

}  // namespace gemmd

#endif  // GEMMD_PROTO_JOB_RING_H_
