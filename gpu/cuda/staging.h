// SPDX-License-Identifier: Apache-2.0
// Operands on the GPU for the jobs of one batch: those that already are there as they are, others as copies that the
// batch's stream makes before its kernels and brings back after them. Copies keep the operand's own strides where
// little lies between its rows: the copy engines move one long run of bytes faster than many rows. Worker's loop only.
#ifndef GEMMD_GPU_CUDA_STAGING_H_
#define GEMMD_GPU_CUDA_STAGING_H_

#include "gpu/job.h"

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace gemmd {

// A strided window in GPU memory; like Operand, but with an address.
struct GpuWindow {
  char* data = nullptr;
  int rank = 0;
  int64_t element_bytes = 1;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};  // Elements.
};

// Copies `rows` rows of `width` bytes; pitches in bytes. Between host and GPU in any direction.
absl::Status CopyRows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t width, int64_t rows,
                      cudaStream_t stream);

// A stream, and GPU memory on 256 bytes, never empty, that only work of that stream uses: copies that fit there cost no
// allocation, a fifth of the host's time for a small product.
struct WorkStream {
  cudaStream_t stream = nullptr;
  absl::Span<char> scratch;
};

// One for each job: the next one of the stream may use the same scratch.
class Staging {
 public:
  explicit Staging(const WorkStream& work) : stream_(work.stream), scratch_(work.scratch) {}
  // Frees, in the stream's order, what Allocate gave.
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // On 256 bytes; an address of no use for 0 bytes. Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<char*> Allocate(int64_t byte_size);

  // The operand on the GPU, with its contents.
  absl::StatusOr<GpuWindow> Input(const Operand& operand);

  // The same, with at least these rows of its matrices (`group` is the matrix): what nobody multiplies is not copied if
  // that is worth the additional copies. For rank 3.
  absl::StatusOr<GpuWindow> InputRows(const Operand& operand, absl::Span<const RowSegment> rows);

  // The operand on the GPU, without its contents. What was written must be brought back with Return.
  absl::StatusOr<GpuWindow> Output(const Operand& operand);

  // The result of a product, with or without its contents: TMA writes the last 16 bytes of a row whole, so a D in GPU
  // memory whose rows end elsewhere is written beside and brought back too.
  absl::StatusOr<GpuWindow> Result(const Operand& operand, bool with_contents);

  // Copies rows [begin, end) of matrix `batch` of the window to the operand, if they are not there already. Matrices of
  // rank 2 have batch 0.
  absl::Status Return(const GpuWindow& window, const Operand& operand, int64_t batch, int64_t begin, int64_t end);

 private:
  enum class Direction { kToWindow, kToOperand };

  // Copies on the GPU, even of operands that already are there.
  absl::StatusOr<GpuWindow> Room(const Operand& operand);
  absl::StatusOr<GpuWindow> Copied(const Operand& operand);
  absl::Status CopyPart(Direction direction, const GpuWindow& window, const Operand& operand, int64_t batch,
                        int64_t begin, int64_t end);

  cudaStream_t stream_;
  absl::Span<char> scratch_;
  size_t scratch_used_ = 0;
  absl::InlinedVector<void*, 6> allocations_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_STAGING_H_
