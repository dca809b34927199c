// SPDX-License-Identifier: Apache-2.0
// One GEMM on device memory, ready to be launched: plain values with device addresses. CudaDevice makes it from a job;
// benchmarks and tests make it by hand.
#ifndef GEMMD_GPU_CUDA_GEMM_CALL_H_
#define GEMMD_GPU_CUDA_GEMM_CALL_H_

#include "gpu/kernels/kernel_args.h"

#include "absl/container/inlined_vector.h"

#include <cstdint>
#include <vector>

namespace gemmd {

// `batches` matrices of [rows, columns]; the last stride is 1. Strides in elements.
struct MatrixView {
  void* data = nullptr;
  int64_t batches = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
};

using SegmentList = absl::InlinedVector<Segment, 1>;  // Dense products have one.

// D = A * B^T (+ D). A: [batches, M, K], B: [groups, N, K], D: [batches, M, N]. Every segment multiplies its rows of
// A[batch] with B[group] into the same rows of D[batch]. TMA moves 16 bytes at least: rows of D are written to the next
// multiple of 16 bytes.
struct GemmCall {
  KernelScaling scaling = KernelScaling::kRowBlock;
  KernelOutput output = KernelOutput::kBf16;
  MatrixView a;
  MatrixView b;
  MatrixView d;
  ScaleView sfa = {};
  ScaleView sfb = {};
  SegmentList segments;
  bool clip_rows = false;  // Rows of D beyond a segment must stay untouched.
  // Where only the GPU knows how many rows of each segment there are (LaunchClampRows): their numbers in GPU memory.
  // Segment i is then batch i times group i, from row 0 to the most rows that there may be.
  const int* group_rows = nullptr;

  // k-grouped only: A and B of each segment as single matrices, [M, K_g] and [N, K_g]; `a` and `b` are then unused.
  std::vector<MatrixView> segment_a;
  std::vector<MatrixView> segment_b;

  int64_t n() const { return d.columns; }
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_GEMM_CALL_H_
