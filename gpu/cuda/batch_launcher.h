// SPDX-License-Identifier: Apache-2.0
// Puts the work of a batch into a stream: copies in, kernels, copies out. Jobs that share weights share a launch where
// that saves more than packing their rows costs (packed_rows.h). Worker's loop only.
#ifndef GEMMD_GPU_CUDA_BATCH_LAUNCHER_H_
#define GEMMD_GPU_CUDA_BATCH_LAUNCHER_H_

#include "gpu/cuda/counted_rows.h"
#include "gpu/cuda/gemm_call.h"
#include "gpu/cuda/gemm_launcher.h"
#include "gpu/cuda/packed_rows.h"
#include "gpu/cuda/staging.h"
#include "gpu/job.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <cuda_runtime_api.h>

#include <vector>

namespace gemmd {

class BatchLauncher {
 public:
  explicit BatchLauncher(GemmLauncher& launcher) : launcher_(launcher) {}

  // One status for each job. Work that failed to start leaves the outputs as they were, or partly written. `counted`
  // gets the rows that only the GPU knows.
  std::vector<absl::Status> Launch(const Batch& batch, const WorkStream& work, CountedRows& counted);

 private:
  absl::Status LaunchJob(const Gemm& gemm, const WorkStream& work, CountedRows& counted);
  absl::Status LaunchTogether(const Batch& batch, const PackedRows& packed, const WorkStream& work);
  absl::Status Copy(const Gemm& gemm, const WorkStream& work);
  absl::Status Quantize(const Gemm& gemm, const WorkStream& work);
  absl::Status Transpose(const Gemm& gemm, const WorkStream& work);
  absl::Status Multiply(const Gemm& gemm, const WorkStream& work, CountedRows& counted);
  absl::Status MultiplyDepth(const Gemm& gemm, const WorkStream& work);

  // A or SFA on the GPU, or what is multiplied of it.
  static absl::StatusOr<GpuWindow> InputOf(Staging& staging, const Gemm& gemm, OperandIndex index);

  // Has the GPU count the rows in use of each group.
  absl::Status CountRows(const Gemm& gemm, Staging& staging, cudaStream_t stream, CountedRows& counted, GemmCall* call);

  // A or SFA of all jobs as one matrix on the GPU; and D from such a matrix to where the jobs want it.
  absl::StatusOr<GpuWindow> Gather(Staging& staging, cudaStream_t stream, const Batch& batch, const PackedRows& packed,
                                   OperandIndex index);
  absl::Status Scatter(const GpuWindow& all, cudaStream_t stream, const Batch& batch, const PackedRows& packed);

  // Replaces BF16 `a` by e4m3 and fills in its scales; of rank 3 only in the rows of `segments`.
  absl::Status QuantizeRows(Staging& staging, cudaStream_t stream, const SegmentList& segments, GpuWindow* a,
                            ScaleView* sfa);

  GemmLauncher& launcher_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_BATCH_LAUNCHER_H_
