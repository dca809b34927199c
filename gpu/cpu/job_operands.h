// SPDX-License-Identifier: Apache-2.0
// The operands of one job as host memory. Mapped memory is used in place. Shared memory that must not be mapped is read
// into scratch first, and results are written back from scratch, only the rows that the job computed. Used by the
// thread that runs a batch.
#ifndef GEMMD_GPU_CPU_JOB_OPERANDS_H_
#define GEMMD_GPU_CPU_JOB_OPERANDS_H_

#include "gpu/cpu/host_matrix.h"
#include "gpu/cpu/scratch.h"
#include "gpu/job.h"
#include "proto/job.h"

#include <array>
#include <cstdint>
#include <vector>

namespace gemmd {

class JobOperands {
 public:
  // `gemm` must outlive this. `scratch_limit_bytes` bounds all scratch of this job.
  JobOperands(const Gemm& gemm, uint64_t scratch_limit_bytes);

  // Makes every operand reachable. Rules: kRegionShrank, kOutOfMemory, kDeviceFailed.
  Reason Load();

  // Writes the outputs that were announced. Rules as Load.
  Reason Store();

  // An operand of rank 2, or one of a group of an operand of rank 3; absent if the operand is. Requires: Load.
  HostMatrix Matrix(OperandIndex index) const;
  HostMatrix Matrix(OperandIndex index, int64_t group) const;
  // The flat window of an operand of rank 1 that begins at `element`, as a contiguous matrix.
  HostMatrix Flat(OperandIndex index, int64_t element, int64_t rows, int64_t columns) const;

  // Says that `window`, which lies in output `index`, is computed by this job.
  void AddOutput(OperandIndex index, const HostMatrix& window);

  // Scratch that lives as long as this; null if it is beyond the limit or there is no memory.
  std::byte* Allocate(uint64_t byte_size);

 private:
  struct Output {
    OperandIndex index;
    HostMatrix window;
  };

  bool IsCopied(OperandIndex index) const;
  Reason LoadOperand(OperandIndex index);
  Reason StoreRows(const Output& output);

  const Gemm& gemm_;
  uint64_t scratch_left_;
  std::array<std::byte*, kOperandCount> data_{};
  std::vector<Scratch> scratch_;
  std::vector<Output> outputs_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_JOB_OPERANDS_H_
