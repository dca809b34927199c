// SPDX-License-Identifier: Apache-2.0
// A job after its check: what a device executes. Plain values made by CheckJob (gpu/job_check.h); everything in here is
// known to be consistent and inside its memory, so devices check nothing.
#ifndef GEMMD_GPU_JOB_H_
#define GEMMD_GPU_JOB_H_

#include "proto/job.h"
#include "proto/worker_counters.h"

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace gemmd {

class DeviceMemory;

// One operand: a strided window on device memory, which it pins for as long as it lives.
struct Operand {
  std::shared_ptr<DeviceMemory> memory;  // Null if absent.
  uint64_t region = 0;                   // The id, for keys (same resident B) and overlap checks.
  uint64_t offset = 0;                   // Bytes to the first element.
  DType dtype = DType::kNone;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};  // Elements.

  bool present() const { return memory != nullptr; }
};

// Rows [begin, end) of A and D that multiply with B[group]; empty ones are left out. For kMGroupedMasked rows count
// within the group's own [M_max] rows.
struct RowSegment {
  int64_t group = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// One checked operation. Shapes of operands as in gemmd.v1 (proto/gemmd/v1/gemm.proto).
struct Gemm {
  Op op = Op::kNone;
  Scaling scaling = Scaling::kUnset;
  QuantizeBlock quantize_block = QuantizeBlock::kUnset;
  bool accumulate = false;
  int64_t m = 0;                     // Rows of A; M_max for kMGroupedMasked. Quantize, transpose: rows of x. Copy: 1.
  int64_t n = 0;                     // Rows of B. 0 for quantize, copy and transpose.
  int64_t k = 0;                     // kKGrouped: sum of K_g. Copy: bytes.
  int64_t groups = 0;                // 0 for operations without groups.
  std::vector<RowSegment> segments;  // m-grouped operations, by group, then row.
  // kMGroupedMasked: masked_m lies in the device's memory, and was not read. The device takes it from there (operand
  // kGroups) when it computes, each value brought into [0, M_max]; `segments` are all rows of all groups.
  bool masked_on_device = false;
  std::vector<int64_t> ks;  // kKGrouped: K_g.
  std::array<Operand, kOperandCount> operands;

  const Operand& operand(OperandIndex index) const { return operands[static_cast<size_t>(index)]; }
  Operand& operand(OperandIndex index) { return operands[static_cast<size_t>(index)]; }
};

// Useful floating-point operations: 2*M*N*K over the rows that exist.
double Flops(const Gemm& gemm);

struct Job {
  uint64_t job_id = 0;
  uint64_t session = 0;
  uint64_t ring = 0;         // Which ring it came from, and its completion goes to.
  uint64_t deadline_ns = 0;  // CLOCK_MONOTONIC; 0: none.
  uint8_t priority = 0;
  Gemm gemm;
};

// Jobs that go to the device together, all with one BatchKey (gpu/batcher.h).
struct Batch {
  std::vector<Job> jobs;
  BatchClose close = BatchClose::kUnmergeable;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_JOB_H_
