// SPDX-License-Identifier: Apache-2.0
// How many rows the groups of masked products had, where only the GPU knew when they were launched: the GPU writes the
// numbers into page-locked memory, and once the batch is done its jobs get the segments that were multiplied, so that
// rows and FLOPs are counted as they were. One batch at a time.
#ifndef GEMMD_GPU_CUDA_COUNTED_ROWS_H_
#define GEMMD_GPU_CUDA_COUNTED_ROWS_H_

#include "gpu/job.h"

#include "absl/status/statusor.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {

class CountedRows {
 public:
  CountedRows() = default;
  ~CountedRows();
  CountedRows(const CountedRows&) = delete;
  CountedRows& operator=(const CountedRows&) = delete;

  // Where a kernel may write the number of rows of each of `groups` groups of that job; valid on host and GPU until
  // ApplyTo. Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<int*> Add(const Gemm* gemm, int64_t groups);

  // Gives the jobs of the batch, which is done, their segments if the numbers were `written`, and forgets all.
  void ApplyTo(Batch& batch, bool written);

 private:
  struct Block {
    int* rows = nullptr;
    int64_t size = 0;
    int64_t used = 0;
  };
  struct Count {
    const Gemm* gemm = nullptr;  // Of the batch: jobs stay where they are when a batch moves.
    const int* rows = nullptr;
  };
  std::vector<Block> blocks_;
  std::vector<Count> counts_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_COUNTED_ROWS_H_
