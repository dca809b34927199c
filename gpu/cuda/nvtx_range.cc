// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/nvtx_range.h"

#include "gpu/batch_key.h"

#include "absl/strings/str_cat.h"

#include <cstdint>

namespace gemmd {

std::string RangeName(const Batch& batch) {
  const Gemm& gemm = batch.jobs.front().gemm;
  int64_t rows = 0;
  for (const Job& job : batch.jobs) rows += RowsOf(job.gemm);
  std::string name = absl::StrCat(Name(gemm.op), " n=", gemm.n, " k=", gemm.k);
  if (gemm.groups > 0) absl::StrAppend(&name, " groups=", gemm.groups);
  absl::StrAppend(&name, ", ", batch.jobs.size(), batch.jobs.size() == 1 ? " job, " : " jobs, ", rows, " rows");
  return name;
}

}  // namespace gemmd
