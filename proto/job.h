// SPDX-License-Identifier: Apache-2.0
// What crosses the job ring: the descriptor of one job and its completion. Plain structs of fixed layout, shared by the
// front end, the worker and (on the fast path) clients; all machines are little-endian and 64-bit.
//
// Descriptors come from memory that a client may write. The worker copies one out first, then checks it
// (gpu/job_check.h), then uses it; nobody else checks.
#ifndef GEMMD_PROTO_JOB_H_
#define GEMMD_PROTO_JOB_H_

#include "proto/element_type.h"

#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace gemmd {

enum class Op : uint8_t {
  kNone = 0,
  kDense = 1,
  kMGroupedContiguous = 2,
  kMGroupedMasked = 3,
  kKGrouped = 4,
  kQuantize = 5,
  kCopy = 6,    // Bytes from operand kA to operand kD; both U8, rank 1, equal length.
  kCancel = 7,  // Drop job `cancel_job_id` if it still waits. Has no completion of its own.
  // Operand kA [R,C] to operand kD [C,R], of one element type. For weights given as [K,N]; no request asks for it.
  kTranspose = 8,
};

// Same numbers as gemmd.v1.Scaling.
enum class Scaling : uint8_t { kUnset = 0, k1D2D = 1, k1D1D = 2, kNone = 3 };

// Encoding of the `groups` operand. kMasked: masked_m[G]; kKSizes: K_g[G]; the others as in gemmd.v1.RowGroups.
enum class GroupEncoding : uint8_t {
  kNone = 0,
  kOffsets = 1,
  kRowIndex = 2,
  kAlignedEnds = 3,
  kMasked = 4,
  kKSizes = 5
};

// Same numbers as gemmd.v1.Quantize.Block.
enum class QuantizeBlock : uint8_t { kUnset = 0, k1x128 = 1, k128x128 = 2 };

// What a worker on the CPU calls its device; others have the UUID of their GPU.
inline constexpr char kCpuDevice[] = "cpu";

// Operands by position in JobDescriptor::operands. Quantize: x is kA, q is kD, sf is kSfd.
enum class OperandIndex : uint8_t { kA = 0, kSfa = 1, kB = 2, kSfb = 3, kD = 4, kSfd = 5, kGroups = 6 };
inline constexpr int kOperandCount = 7;
inline constexpr int kMaxRank = 3;

// K and rows of a 128x128 scale block; K of a 1x128 block.
inline constexpr int64_t kScaleBlock = 128;

// A strided window on a region. region 0 means that the operand is absent.
struct OperandDescriptor {
  uint64_t region = 0;
  uint64_t offset = 0;             // Bytes from the start of the region to the first element.
  int64_t shape[kMaxRank] = {};    // Outermost first; entries at and beyond `rank` are ignored.
  int64_t strides[kMaxRank] = {};  // Elements.
  DType dtype = DType::kNone;
  uint8_t rank = 0;
  uint8_t reserved[6] = {};
};
static_assert(sizeof(OperandDescriptor) == 72 && std::is_trivially_copyable_v<OperandDescriptor>);

inline constexpr uint8_t kFlagAccumulate = 1;

struct JobDescriptor {
  uint64_t job_id = 0;         // Chosen by the submitter, unique among its jobs in flight; echoed in the completion.
  uint64_t session = 0;        // Whose job it is, for fairness. On a client's ring the worker overwrites it.
  uint64_t deadline_ns = 0;    // CLOCK_MONOTONIC; 0: none. A job not launched by then is never launched.
  uint64_t cancel_job_id = 0;  // kCancel only.
  Op op = Op::kNone;
  Scaling scaling = Scaling::kUnset;
  GroupEncoding group_encoding = GroupEncoding::kNone;
  QuantizeBlock quantize_block = QuantizeBlock::kUnset;
  uint8_t flags = 0;
  uint8_t priority = 0;  // 0 to 3, 3 is most urgent.
  uint8_t reserved0[2] = {};
  uint32_t group_alignment = 0;  // Rows, for kAlignedEnds; 0 means 128.
  uint32_t reserved1 = 0;
  OperandDescriptor operands[kOperandCount];
  uint8_t reserved2[88] = {};

  const OperandDescriptor& operand(OperandIndex index) const { return operands[static_cast<size_t>(index)]; }
  OperandDescriptor& operand(OperandIndex index) { return operands[static_cast<size_t>(index)]; }
};
static_assert(sizeof(JobDescriptor) == 640 && std::is_trivially_copyable_v<JobDescriptor>);
static_assert(offsetof(JobDescriptor, operands) == 48);

// The field of a job that a reason speaks of.
enum class JobField : uint8_t {
  kNone = 0,
  kOp,
  kScaling,
  kGroupEncoding,
  kQuantizeBlock,
  kFlags,
  kPriority,
  kGroupAlignment,
  kA,
  kSfa,
  kB,
  kSfb,
  kD,
  kSfd,
  kGroups,
  kJob,     // The job as a whole.
  kDevice,  // The device or worker rather than the job.
  kLast = kDevice,
};

// What is wrong with it. `expected` and `got` of Reason are numbers whose meaning the rule gives; `index` is a
// dimension or an element of a group array where the rule speaks of one.
enum class Rule : uint8_t {
  kNone = 0,
  kUnknownValue,    // got is not a value that this operation knows; expected: the greatest one, 0 for enums.
  kMissing,         // Operand absent but required.
  kUnexpected,      // Operand present (or flag set) but not taken by this operation.
  kDType,           // expected, got: DType; expected 0: none of the accepted ones.
  kRank,            // expected, got: rank.
  kExtent,          // Dimension `index`: expected, got.
  kExtentNegative,  // Dimension `index`: got.
  kExtentTooLarge,  // Dimension `index`: expected at most, got.
  kInnerStride,     // Last stride: expected, got.
  kRowPitch,        // Dimension `index`: pitch in bytes expected to be a multiple of `expected`; got bytes.
  kStrideTooSmall,  // Dimension `index`: expected at least, got (elements).
  kStrideTooLarge,  // Dimension `index`: got (elements).
  kAlignment,       // Offset expected to be a multiple of `expected` bytes; got.
  kUnknownRegion,   // NOT_FOUND.
  kRegionClosed,    // FAILED_PRECONDITION.
  kOutsideRegion,   // OUT_OF_RANGE: expected at most region bytes; got end of the window in bytes (or -1 on overflow).
  kReadOnly,        // Output in a region registered as input only.
  kOverlapsInput,   // Output overlaps operand number got.
  kOverlapsInFlight,  // ABORTED: output overlaps the output of a job in flight.
  kGroupValue,        // Element `index`: expected at most, got.
  kGroupNegative,     // Element `index`: got.
  kGroupOrder,        // Element `index`: expected at least, got.
  kGroupMultiple,     // Element `index`: expected a multiple of, got.
  kGroupSum,          // expected total, got.
  kCountMismatch,     // expected, got.
  kQueueFull,         // RESOURCE_EXHAUSTED: expected at most; got.
  kOutOfMemory,       // RESOURCE_EXHAUSTED: got bytes; 0: not known how many.
  kDeadline,          // DEADLINE_EXCEEDED before launch.
  kCancelled,         // CANCELLED before launch.
  kDraining,          // UNAVAILABLE.
  kDeviceFailed,      // INTERNAL: got is a device-specific number.
  kRegionShrank,      // OUT_OF_RANGE: a shared-memory object became smaller than it was registered.
  kUnsupported,       // UNIMPLEMENTED on this device.
  kDeviceLost,        // UNAVAILABLE: the device failed beyond repair under this job; got is a device-specific number.
  kNotStarted,        // UNAVAILABLE: the worker ends and this job never reached the device. May be submitted again.
  kLast = kNotStarted,
};

struct Reason {
  JobField field = JobField::kNone;
  Rule rule = Rule::kNone;
  uint8_t reserved[2] = {};
  int32_t index = 0;
  int64_t expected = 0;
  int64_t got = 0;
};
static_assert(sizeof(Reason) == 24 && std::is_trivially_copyable_v<Reason>);

// One completion for each job that is not kCancel. `code` is an absl::StatusCode (the numbers of gRPC); 0 is success.
struct JobCompletion {
  uint64_t job_id = 0;
  uint64_t launched_ns = 0;  // CLOCK_MONOTONIC: when its batch was launched, the same for all jobs of it; 0: never.
  uint64_t device_ns = 0;    // From the launch of its batch to the batch's end.
  uint32_t code = 0;
  uint32_t batch_jobs = 0;  // Jobs in the batch, this one included; 0 if it was not launched.
  Reason reason;
  double flops = 0;  // 2*M*N*K over the rows that were computed: none that is masked out or padding. 0 without success.
};
static_assert(sizeof(JobCompletion) == 64 && std::is_trivially_copyable_v<JobCompletion>);

// The status code that belongs to a rule (an absl::StatusCode as a number).
uint32_t CodeOf(Rule rule);

// One sentence for people: "b.shape[1]: expected 7168, got 7000". Names no region, address or handle. Total: any bit
// pattern gives some text, since completions may come from another process's memory.
std::string Describe(const Reason& reason);

absl::string_view Name(Op op);  // "dense", "m_grouped_contiguous", ...; "invalid" outside the enum.
absl::string_view Name(Scaling scaling);

}  // namespace gemmd

#endif  // GEMMD_PROTO_JOB_H_
