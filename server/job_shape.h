// SPDX-License-Identifier: Apache-2.0
// The shape of a job in the words of the operation, for people who look at what ran.
#ifndef GEMMD_SERVER_JOB_SHAPE_H_
#define GEMMD_SERVER_JOB_SHAPE_H_

#include "proto/job.h"

#include <cstdint>

namespace gemmd {

struct JobShape {
  int64_t m = 0;       // Masked: M_max of each group.
  int64_t n = 0;       // 0 for quantize.
  int64_t k = 0;       // K-grouped: of all groups together.
  int64_t groups = 0;  // 0 for operations without groups.
};

// As the descriptor says, which nobody has checked yet: what it does not say, or says wrongly, is 0 or as wrong.
JobShape ShapeOf(const JobDescriptor& job);

}  // namespace gemmd

#endif  // GEMMD_SERVER_JOB_SHAPE_H_
