// SPDX-License-Identifier: Apache-2.0
// Computes a batch, from the checked jobs to results in memory. Used by CpuDevice, one batch at a time.
#ifndef GEMMD_GPU_CPU_BATCH_RUNNER_H_
#define GEMMD_GPU_CPU_BATCH_RUNNER_H_

#include "gpu/cpu/gemm_tiles.h"
#include "gpu/cpu/instruction_set.h"
#include "gpu/cpu/job_operands.h"
#include "gpu/cpu/thread_pool.h"
#include "gpu/device.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {

class BatchRunner {
 public:
  BatchRunner(InstructionSet set, int slots, uint64_t scratch_limit_bytes);

  // False if there is no memory for scratch.
  bool Allocate() { return tiles_.Allocate(); }

  // On `pool` and this thread, or on this thread alone if `pool` is null. A job that fails does not touch the others.
  BatchResult Run(const Batch& batch, ThreadPool* pool);

 private:
  // One job while it runs.
  struct RunningJob {
    JobOperands operands;
    Reason reason;
  };

  void Start(const Gemm& gemm, RunningJob& job, ThreadPool* pool);
  Reason Copy(const Gemm& gemm, ThreadPool* pool) const;
  void Quantize(const Gemm& gemm, JobOperands& operands, ThreadPool* pool) const;
  void Transpose(JobOperands& operands, ThreadPool* pool) const;
  Reason AddProducts(const Gemm& gemm, JobOperands& operands, ThreadPool* pool);
  void AddProduct(const ScaledView& b, const RowProduct& product);
  // Replaces BF16 rows by their e4m3 and scale factors. False if there is no memory.
  bool QuantizeRows(RowProduct& product, JobOperands& operands, ThreadPool* pool) const;

  InstructionSet set_;
  uint64_t scratch_limit_bytes_;
  GemmTiles tiles_;
  std::vector<WeightProducts> weights_;  // Of the batch that runs.
  size_t next_weight_ = 0;               // Where AddProduct looks first.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CPU_BATCH_RUNNER_H_
