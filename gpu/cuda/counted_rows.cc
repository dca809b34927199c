// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/counted_rows.h"

#include "gpu/cuda_status.h"

#include <cuda_runtime_api.h>

#include <algorithm>

namespace gemmd {
namespace {

constexpr int64_t kBlockRows = 1024;  // Page-locked memory comes in pages anyway.

void SetSegments(Gemm& gemm, const int* rows) {
  gemm.segments.clear();
  for (int64_t group = 0; group < gemm.groups; ++group) {
    if (rows[group] > 0) gemm.segments.push_back({group, 0, rows[group]});
  }
}

}  // namespace

CountedRows::~CountedRows() {
  for (const Block& block : blocks_) cudaFreeHost(block.rows);
}

absl::StatusOr<int*> CountedRows::Add(const Gemm* gemm, int64_t groups) {
  auto block = std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& b) { return b.size - b.used >= groups; });
  if (block == blocks_.end()) {
    void* rows = nullptr;
    const int64_t size = std::max(groups, kBlockRows);
    const cudaError_t error = cudaHostAlloc(&rows, static_cast<size_t>(size) * sizeof(int), cudaHostAllocMapped);
    if (error != cudaSuccess) {
      cudaGetLastError();
      return CudaStatus(error, "page-locked memory for the rows of groups");
    }
    block = blocks_.insert(blocks_.end(), {static_cast<int*>(rows), size, 0});
  }
  int* const rows = block->rows + block->used;
  block->used += groups;
  counts_.push_back({gemm, rows});
  return rows;
}

void CountedRows::ApplyTo(Batch& batch, bool written) {
  for (const Count& count : counts_) {
    if (!written) break;
    for (Job& job : batch.jobs) {
      if (&job.gemm == count.gemm) SetSegments(job.gemm, count.rows);
    }
  }
  counts_.clear();
  for (Block& block : blocks_) block.used = 0;
}

}  // namespace gemmd
