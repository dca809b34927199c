// SPDX-License-Identifier: Apache-2.0
// The values of a group array (row offsets, row index, aligned ends, masked rows, K sizes), checked and normalised.
// Pure; used by the job check after it copied the array out of shared memory.
#ifndef GEMMD_GPU_ROW_GROUPS_H_
#define GEMMD_GPU_ROW_GROUPS_H_

#include "gpu/job.h"
#include "proto/job.h"

#include "absl/types/span.h"

#include <cstdint>

namespace gemmd {

struct RowGroupSpec {
  GroupEncoding encoding = GroupEncoding::kNone;
  int64_t rows = 0;       // M; M_max for kMasked.
  int64_t groups = 0;     // G.
  int64_t alignment = 0;  // Rows, for kAlignedEnds.
};

// Appends the non-empty segments to `segments`; Rule::kNone on success, otherwise the first rule that a value breaks.
Reason AppendSegments(const RowGroupSpec& spec, absl::Span<const int64_t> values, std::vector<RowSegment>& segments);

// Each K_g non-negative, a multiple of `multiple`, at most `limit`; as is their sum.
Reason CheckKSizes(absl::Span<const int64_t> ks, int64_t multiple, int64_t limit);

}  // namespace gemmd

#endif  // GEMMD_GPU_ROW_GROUPS_H_
