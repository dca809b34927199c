// SPDX-License-Identifier: Apache-2.0
// The one place where jobs are validated: every rule of gemmd.v1 (proto/gemmd/v1/gemm.proto) on a descriptor that was
// copied out of shared memory. What passes is consistent and inside its memory; devices check nothing.
#ifndef GEMMD_GPU_JOB_CHECK_H_
#define GEMMD_GPU_JOB_CHECK_H_

#include "gpu/job.h"
#include "gpu/region_table.h"
#include "proto/job.h"

#include "absl/functional/function_ref.h"

#include <cstdint>
#include <variant>

namespace gemmd {

// Rows, columns and depth of a matrix: what BLAS and TMA take as a 32-bit int.
inline constexpr int64_t kMaxExtent = (int64_t{1} << 31) - 1;
// Elements of rank-1 operands (copies, k-grouped A and B), and strides: far above any memory, far below overflow.
inline constexpr int64_t kMaxFlatExtent = int64_t{1} << 40;
inline constexpr int64_t kMaxStride = int64_t{1} << 40;
// Group arrays are read by the worker's loop before the launch, so their lengths are bounded: 256 KiB and 64 MiB.
inline constexpr int64_t kMaxGroups = int64_t{1} << 16;
inline constexpr int64_t kMaxIndexedRows = int64_t{1} << 24;
inline constexpr uint32_t kMaxGroupAlignment = uint32_t{1} << 16;
inline constexpr uint8_t kMaxPriority = 3;

using RegionLookup = absl::FunctionRef<RegionHit(uint64_t region)>;

// The checked operation, or the first rule that the job breaks. Reads group arrays from memory, once; otherwise pure.
// Op::kCancel is not an operation (the worker handles it before). Empty operands need no memory beyond a region that
// exists; their offset becomes 0.
std::variant<Gemm, Reason> CheckJob(const JobDescriptor& job, RegionLookup find_region);

// Reads the masked rows that CheckJob left to the device, so that the job can share a launch: afterwards `segments` say
// them, each brought into [0, M_max], and masked_on_device is false. Leaves the job as it is where that fails.
void ReadMaskedRows(Gemm& gemm);

}  // namespace gemmd

#endif  // GEMMD_GPU_JOB_CHECK_H_
