// SPDX-License-Identifier: Apache-2.0
#include "proto/worker_counters.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

namespace gemmd {
namespace {

constexpr uint64_t kMagic = 0x31544e5543574d47;  // "GMWCUNT1"

struct Block {
  uint64_t magic = kMagic;
  uint64_t byte_size = sizeof(Block);  // Stands for the layout: both ends are one build.
  WorkerCounts counts;
  WorkerGauges gauges;
};
static_assert(std::is_trivially_copyable_v<Block> && std::is_standard_layout_v<Block>);
static_assert(sizeof(Block) % sizeof(uint64_t) == 0);
static_assert(std::atomic_ref<uint64_t>::is_always_lock_free);

Block& BlockOf(const SharedMapping& mapping) { return *std::launder(reinterpret_cast<Block*>(mapping.data())); }

// The structs are words and nothing else.
template <typename Struct>
Struct ReadWords(Struct& shared) {
  std::array<uint64_t, sizeof(Struct) / sizeof(uint64_t)> words;
  auto* from = reinterpret_cast<uint64_t*>(&shared);
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = std::atomic_ref<uint64_t>(from[i]).load(std::memory_order_relaxed);
  }
  return std::bit_cast<Struct>(words);
}

using CountWords = std::array<uint64_t, sizeof(WorkerCounts) / sizeof(uint64_t)>;
constexpr size_t kDoubles = kCountedOps * kProductTypes;
static_assert(offsetof(WorkerCounts, flops_bits) == 0);

template <size_t kBounds>
void ObserveIn(HistogramCounts<kBounds>& histogram, const std::array<uint64_t, kBounds>& bounds, uint64_t value) {
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
  Count(histogram.buckets[bucket]);
  Count(histogram.sum, value);
}

template <size_t kSize, typename Value>
absl::string_view NameIn(const std::array<absl::string_view, kSize>& names, Value value) {
  const auto index = static_cast<size_t>(value);
  return index < kSize ? names[index] : "invalid";
}

}  // namespace

absl::string_view Name(ProductType type) {
  return NameIn(std::array<absl::string_view, kProductTypes>{"e4m3", "bf16"}, type);
}

absl::string_view Name(Direction direction) {
  return NameIn(std::array<absl::string_view, kDirections>{"in", "out"}, direction);
}

absl::string_view Name(RowKind kind) {
  return NameIn(std::array<absl::string_view, kRowKinds>{"useful", "padding"}, kind);
}

absl::string_view Name(BatchClose close) {
  return NameIn(std::array<absl::string_view, kBatchCloses>{"unmergeable", "drained", "job_limit", "row_limit"}, close);
}

absl::string_view Name(DeviceErrorClass error) {
  return NameIn(std::array<absl::string_view, kDeviceErrorClasses>{"out_of_memory", "kernel_fault", "timeout",
                                                                   "hardware", "invalid", "other"},
                error);
}

double WorkerCounts::flops(Op op, ProductType type) const {
  return std::bit_cast<double>(flops_bits[static_cast<size_t>(op)][static_cast<size_t>(type)]);
}

void AddTo(WorkerCounts& total, const WorkerCounts& counts) {
  auto sums = std::bit_cast<CountWords>(total);
  const auto words = std::bit_cast<CountWords>(counts);
  for (size_t i = 0; i < kDoubles; ++i) {
    sums[i] = std::bit_cast<uint64_t>(std::bit_cast<double>(sums[i]) + std::bit_cast<double>(words[i]));
  }
  for (size_t i = kDoubles; i < sums.size(); ++i) sums[i] += words[i];
  total = std::bit_cast<WorkerCounts>(sums);
}

void CountDouble(uint64_t& bits, double amount) {
  std::atomic_ref<uint64_t> word(bits);
  uint64_t old = word.load(std::memory_order_relaxed);
  while (!word.compare_exchange_weak(old, std::bit_cast<uint64_t>(std::bit_cast<double>(old) + amount),
                                     std::memory_order_relaxed)) {
  }
}

void Observe(DurationCounts& histogram, uint64_t nanos) { ObserveIn(histogram, kDurationBoundsNanos, nanos); }

void Observe(SizeCounts& histogram, uint64_t size) { ObserveIn(histogram, kSizeBounds, size); }

absl::StatusOr<WorkerCounters> WorkerCounters::Create() {
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(sizeof(Block));
  if (!fd.ok()) return fd.status();
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd->get(), sizeof(Block), Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  new (mapping->data()) Block;
  return WorkerCounters(*std::move(fd), *std::move(mapping));
}

absl::StatusOr<WorkerCounters> WorkerCounters::Open(const UniqueFd& fd) {
  if (absl::Status status = CheckSealedMemory(fd.get(), sizeof(Block)); !status.ok()) return status;
  // Writable only because an atomic read of a word is an operation on a word that may be written.
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd.get(), sizeof(Block), Access::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  const Block& block = BlockOf(*mapping);
  if (block.magic != kMagic || block.byte_size != sizeof(Block)) {
    return absl::InvalidArgumentError(absl::StrCat("worker counters: expected a layout of ", sizeof(Block),
                                                   " bytes, got magic ", block.magic, " and ", block.byte_size,
                                                   " bytes"));
  }
  return WorkerCounters(UniqueFd(), *std::move(mapping));
}

WorkerCounts& WorkerCounters::counts() const { return BlockOf(mapping_).counts; }

WorkerGauges& WorkerCounters::gauges() const { return BlockOf(mapping_).gauges; }

WorkerCounts WorkerCounters::ReadCounts() const { return ReadWords(counts()); }

WorkerGauges WorkerCounters::ReadGauges() const { return ReadWords(gauges()); }

}  // namespace gemmd
