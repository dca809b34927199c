// SPDX-License-Identifier: Apache-2.0
// What a worker counts, in memory that it shares with the front end: the worker adds, the front end reads at each
// scrape and adds up what a device's processes have counted one after another. The memory outlives its worker, so
// nothing that was counted is lost when one dies.
//
// Everything is a 64-bit word that is read and written atomically, one by one: a reader may see a batch in one counter
// and not yet in the next.
#ifndef GEMMD_PROTO_WORKER_COUNTERS_H_
#define GEMMD_PROTO_WORKER_COUNTERS_H_

#include "proto/job.h"
#include "proto/shared_memory.h"
#include "proto/unique_fd.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace gemmd {

// Operations that a device runs, by Op; index 0 stays empty.
inline constexpr size_t kCountedOps = static_cast<size_t>(Op::kTranspose) + 1;

// What tensor cores multiply: e4m3 (BF16 that was quantized on the way in included), or BF16.
enum class ProductType : uint8_t { kE4m3 = 0, kBf16 = 1 };
inline constexpr size_t kProductTypes = 2;

enum class Direction : uint8_t { kIn = 0, kOut = 1 };
inline constexpr size_t kDirections = 2;

enum class RowKind : uint8_t { kUseful = 0, kPadding = 1 };
inline constexpr size_t kRowKinds = 2;

// Why a batch got no more jobs.
enum class BatchClose : uint8_t {
  kUnmergeable = 0,  // Its job never shares a launch.
  kDrained = 1,      // Nothing else waited for the same weights.
  kJobLimit = 2,
  kRowLimit = 3,
};
inline constexpr size_t kBatchCloses = 4;

// Errors of the device's driver, by what they mean for an operator.
enum class DeviceErrorClass : uint8_t {
  kOutOfMemory = 0,
  kKernelFault = 1,  // Illegal address or instruction, assertion, misaligned access, ...
  kTimeout = 2,
  kHardware = 3,  // ECC, NVLink, a device that is gone.
  kInvalid = 4,   // Illegal arguments: our fault.
  kOther = 5,
};
inline constexpr size_t kDeviceErrorClasses = 6;

absl::string_view Name(ProductType type);
absl::string_view Name(Direction direction);
absl::string_view Name(RowKind kind);
absl::string_view Name(BatchClose close);
absl::string_view Name(DeviceErrorClass error);

// Upper bounds, inclusive, of the buckets of durations: from 5 us, where a decode product on a GPU ends, to 10 s, where
// the patience of clients does. Above the last there is one more bucket.
inline constexpr std::array<uint64_t, 20> kDurationBoundsNanos = {
    5'000,       10'000,      20'000,        50'000,        100'000,       200'000,       500'000,
    1'000'000,   2'000'000,   5'000'000,     10'000'000,    20'000'000,    50'000'000,    100'000'000,
    200'000'000, 500'000'000, 1'000'000'000, 2'000'000'000, 5'000'000'000, 10'000'000'000};
// The same for requests, groups and rows of a batch.
inline constexpr std::array<uint64_t, 17> kSizeBounds = {1,   2,    4,    8,    16,   32,    64,    128,  256,
                                                         512, 1024, 2048, 4096, 8192, 16384, 32768, 65536};

template <size_t kBounds>
struct HistogramCounts {
  uint64_t buckets[kBounds + 1] = {};
  uint64_t sum = 0;
};
using DurationCounts = HistogramCounts<kDurationBoundsNanos.size()>;  // Nanoseconds.
using SizeCounts = HistogramCounts<kSizeBounds.size()>;

// These only grow.
struct WorkerCounts {
  uint64_t flops_bits[kCountedOps][kProductTypes] = {};  // Bits of a double: a day of a GPU's work exceeds 64 bits.
  uint64_t operand_bytes[kDirections] = {};
  uint64_t rows[kRowKinds] = {};
  DurationCounts batch_duration[kCountedOps];
  SizeCounts batch_jobs;  // This and the next four: batches of all operations but copies.
  SizeCounts batch_groups;
  SizeCounts batch_rows;
  uint64_t batch_closes[kBatchCloses] = {};
  uint64_t busy_ns = 0;  // While at least one batch was on the device.
  uint64_t kernel_hits = 0;
  uint64_t kernel_misses = 0;
  uint64_t kernel_loads = 0;  // From disk.
  uint64_t kernel_evictions = 0;
  uint64_t compiles_ok = 0;
  uint64_t compiles_failed = 0;
  DurationCounts compile_duration;
  uint64_t device_errors[kDeviceErrorClasses][2] = {};  // Not sticky, sticky.

  double flops(Op op, ProductType type) const;
};

// These are what they are now; a dead worker has none.
struct WorkerGauges {
  uint64_t queued_jobs = 0;  // Wait for the device.
  uint64_t queued_ns = 0;    // How long the device is predicted to take for them.
  uint64_t kernels = 0;      // In memory.
  uint64_t kernel_bytes = 0;
  uint64_t compiles_waiting = 0;
  uint64_t peak_flops[kProductTypes] = {};  // Per second, as the device's data say; 0: not known.
  uint64_t peak_memory_bytes = 0;           // The same.
};

// Adds to the counts of a device those of one of its processes.
void AddTo(WorkerCounts& total, const WorkerCounts& counts);

// Adds to a word of shared counts. Any thread.
inline void Count(uint64_t& word, uint64_t amount = 1) {
  std::atomic_ref<uint64_t>(word).fetch_add(amount, std::memory_order_relaxed);
}
inline void SetGauge(uint64_t& word, uint64_t value) {
  std::atomic_ref<uint64_t>(word).store(value, std::memory_order_relaxed);
}
// `bits` are those of a double.
void CountDouble(uint64_t& bits, double amount);
void Observe(DurationCounts& histogram, uint64_t nanos);
void Observe(SizeCounts& histogram, uint64_t size);
// A copy, while others add.
DurationCounts Read(DurationCounts& histogram);

// One worker's memory. Move-only.
class WorkerCounters {
 public:
  // The worker's side: fresh memory, all zero. Errors: RESOURCE_EXHAUSTED.
  static absl::StatusOr<WorkerCounters> Create();

  // The front end's side. Errors: INVALID_ARGUMENT (not sealed, or not of this build's layout).
  static absl::StatusOr<WorkerCounters> Open(const UniqueFd& fd);

  // For the worker, who adds with the functions above.
  WorkerCounts& counts() const;
  WorkerGauges& gauges() const;
  int fd() const { return fd_.get(); }  // -1 on the front end's side.

  // Copies, for the front end.
  WorkerCounts ReadCounts() const;
  WorkerGauges ReadGauges() const;

 private:
  WorkerCounters(UniqueFd fd, SharedMapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}

  UniqueFd fd_;
  SharedMapping mapping_;
};

}  // namespace gemmd

#endif  // GEMMD_PROTO_WORKER_COUNTERS_H_
