// SPDX-License-Identifier: Apache-2.0
#include "proto/job_ring.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include <bit>
#include <climits>
#include <cstring>
#include <ctime>
#include <linux/futex.h>
#include <new>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

// The futex is shared between processes, hence no FUTEX_PRIVATE_FLAG. FUTEX_WAIT_BITSET takes an absolute
// CLOCK_MONOTONIC deadline.
void FutexWait(std::atomic<uint32_t>& word, uint32_t seen, uint64_t deadline_ns) {
  timespec deadline{};
  deadline.tv_sec = static_cast<time_t>(deadline_ns / 1'000'000'000);
  deadline.tv_nsec = static_cast<long>(deadline_ns % 1'000'000'000);
  syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, seen, deadline_ns == 0 ? nullptr : &deadline, nullptr,
          FUTEX_BITSET_MATCH_ANY);
}

void FutexWake(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

void Ring(RingDirection& direction) {
  direction.doorbell.fetch_add(1, std::memory_order_seq_cst);
  FutexWake(direction.doorbell);
}

void Pause() { __builtin_ia32_pause(); }

constexpr uint64_t RingBytes(uint64_t slots) {
  return sizeof(RingHeader) + slots * (sizeof(JobDescriptor) + sizeof(JobCompletion));
}

bool IsSlotCount(uint32_t slots) { return std::has_single_bit(slots) && slots <= kMaxRingSlots; }

constexpr int kPausesBetweenLooks = 8;

}  // namespace

uint64_t MonotonicNanos() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void PauseBetweenLooks() {
  for (int i = 0; i < kPausesBetweenLooks; ++i) Pause();
}

template <typename T>
bool RingWriter<T>::Write(const T& item) {
  const uint64_t consumed = direction_->consumed.load(std::memory_order_acquire);
  // A hostile reader may claim anything; an impossible position only makes its own ring look full.
  if (written_ - consumed >= slot_count_) return false;
  std::memcpy(&slots_[written_ & (slot_count_ - 1)], &item, sizeof(T));
  ++written_;
  direction_->written.store(written_, std::memory_order_seq_cst);
  if (direction_->sleeping.load(std::memory_order_seq_cst) != 0) Ring(*direction_);
  return true;
}

template <typename T>
RingRead RingReader<T>::Read(T& item) {
  const uint64_t available = direction_->written.load(std::memory_order_acquire) - consumed_;
  if (available == 0) return RingRead::kEmpty;
  if (available > slot_count_) return RingRead::kBroken;
  std::memcpy(&item, &slots_[consumed_ & (slot_count_ - 1)], sizeof(T));
  ++consumed_;
  direction_->consumed.store(consumed_, std::memory_order_release);
  return RingRead::kItem;
}

template <typename T>
bool RingReader<T>::HasNews() const {
  return direction_->written.load(std::memory_order_seq_cst) != consumed_ ||
         interrupted_.load(std::memory_order_seq_cst);
}

template <typename T>
void RingReader<T>::Wait(uint64_t deadline_ns, SpinPolicy spin) {
  if (spin.spin_ns > 0 && !HasNews()) {
    uint64_t spin_end = MonotonicNanos() + spin.spin_ns;
    if (deadline_ns != 0 && deadline_ns < spin_end) spin_end = deadline_ns;
    // The clock costs about 20 ns; looking at it every 64 turns keeps the reaction to news at the cost of one load.
    while (!HasNews() && MonotonicNanos() < spin_end) {
      for (int turn = 0; turn < 64 && !HasNews(); ++turn) Pause();
      sched_yield();
    }
  }
  if (!HasNews()) {
    const uint32_t seen = direction_->doorbell.load(std::memory_order_seq_cst);
    direction_->sleeping.store(1, std::memory_order_seq_cst);
    if (!HasNews()) FutexWait(direction_->doorbell, seen, deadline_ns);
    direction_->sleeping.store(0, std::memory_order_seq_cst);
  }
  // An exchange, so that what was done before Interrupt is visible here.
  interrupted_.exchange(false, std::memory_order_seq_cst);
}

template <typename T>
void RingReader<T>::Interrupt() {
  interrupted_.store(true, std::memory_order_seq_cst);
  if (direction_->sleeping.load(std::memory_order_seq_cst) != 0) Ring(*direction_);
}

template class RingWriter<JobDescriptor>;
template class RingWriter<JobCompletion>;
template class RingReader<JobDescriptor>;
template class RingReader<JobCompletion>;

JobRing::JobRing(UniqueFd fd, SharedMapping mapping, uint32_t slots)
    : fd_(std::move(fd)), mapping_(std::move(mapping)), slots_(slots) {}

absl::StatusOr<JobRing> JobRing::Create(uint32_t slots) {
  if (!IsSlotCount(slots)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ring slots: expected a power of two up to ", kMaxRingSlots, ", got ", slots));
  }
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(RingBytes(slots));
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd->get(), RingBytes(slots), Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  auto* header = new (mapping->data()) RingHeader{};
  header->magic = kRingMagic;
  header->slots = slots;
  header->descriptor_bytes = sizeof(JobDescriptor);
  header->completion_bytes = sizeof(JobCompletion);
  return JobRing(*std::move(fd), *std::move(mapping), slots);
}

absl::StatusOr<JobRing> JobRing::Open(UniqueFd fd) {
  if (absl::Status status = CheckSealedMemory(fd.get(), sizeof(RingHeader)); !status.ok()) return status;
  absl::StatusOr<SharedMapping> header_mapping = SharedMapping::Map(fd.get(), sizeof(RingHeader), Access::kReadOnly);
  if (!header_mapping.ok()) return header_mapping.status();
  RingHeader* header = reinterpret_cast<RingHeader*>(header_mapping->data());
  const uint32_t slots = std::atomic_ref(header->slots).load(std::memory_order_relaxed);
  if (header->magic != kRingMagic || !IsSlotCount(slots) || header->descriptor_bytes != sizeof(JobDescriptor) ||
      header->completion_bytes != sizeof(JobCompletion)) {
    return absl::InvalidArgumentError("ring header: not a job ring of this version");
  }
  if (absl::Status status = CheckSealedMemory(fd.get(), RingBytes(slots)); !status.ok()) return status;
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd.get(), RingBytes(slots), Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  return JobRing(std::move(fd), *std::move(mapping), slots);
}

JobDescriptor* JobRing::descriptor_slots() const {
  return reinterpret_cast<JobDescriptor*>(mapping_.data() + sizeof(RingHeader));
}

JobCompletion* JobRing::completion_slots() const {
  return reinterpret_cast<JobCompletion*>(mapping_.data() + sizeof(RingHeader) +
                                          static_cast<size_t>(slots_) * sizeof(JobDescriptor));
}

}  // namespace gemmd
