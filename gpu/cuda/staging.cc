// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/staging.h"

#include "gpu/cuda/cuda_memory.h"
#include "gpu/cuda_status.h"

#include <algorithm>

namespace gemmd {
namespace {

constexpr int64_t kPitchBytes = 16;  // TMA takes row pitches that are multiples of 16 bytes.

const CudaMemory& MemoryOf(const Operand& operand) { return static_cast<const CudaMemory&>(*operand.memory); }

bool IsEmpty(const Operand& operand) {
  return std::any_of(operand.shape.begin(), operand.shape.begin() + operand.rank, [](int64_t n) { return n == 0; });
}

// Dimensions from the slowest to the one with stride 1: the last, or the one before it for M-major scale factors.
std::array<int, kMaxRank> OrderOf(const Operand& operand) {
  std::array<int, kMaxRank> order{0, 1, 2};
  const int last = operand.rank - 1;
  if (operand.rank >= 2 && operand.strides[static_cast<size_t>(last)] != 1 &&
      operand.strides[static_cast<size_t>(last - 1)] == 1) {
    std::swap(order[static_cast<size_t>(last)], order[static_cast<size_t>(last - 1)]);
  }
  return order;
}

}  // namespace

Staging::~Staging() {
  for (void* allocation : allocations_) cudaFreeAsync(allocation, stream_);
}

absl::StatusOr<char*> Staging::Allocate(int64_t byte_size) {
  if (byte_size == 0) return empty_;
  void* data = nullptr;
  const cudaError_t error = cudaMallocAsync(&data, static_cast<size_t>(byte_size), stream_);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return CudaStatus(error, "scratch memory");
  }
  allocations_.push_back(data);
  return static_cast<char*>(data);
}

absl::StatusOr<GpuWindow> Staging::Packed(const Operand& operand) {
  GpuWindow window{empty_, operand.rank, ByteSize(operand.dtype), operand.shape, {}};
  const std::array<int, kMaxRank> order = OrderOf(operand);
  int64_t stride = 1;
  for (int i = operand.rank - 1; i >= 0; --i) {
    const size_t dimension = static_cast<size_t>(order[static_cast<size_t>(i)]);
    window.strides[dimension] = stride;
    stride *= std::max<int64_t>(operand.shape[dimension], 1);
    if (i == operand.rank - 1) {
      const int64_t multiple = kPitchBytes / window.element_bytes;
      stride = (stride + multiple - 1) / multiple * multiple;
    }
  }
  if (IsEmpty(operand)) return window;
  absl::StatusOr<char*> data = Allocate(stride * window.element_bytes);
  if (!data.ok()) return data.status();
  window.data = *data;
  return window;
}

absl::StatusOr<GpuWindow> Staging::Output(const Operand& operand) {
  if (absl::Status status = MemoryOf(operand).CheckStillThere(); !status.ok()) return status;
  if (!MemoryOf(operand).on_gpu()) return Packed(operand);
  if (IsEmpty(operand)) return GpuWindow{empty_, operand.rank, ByteSize(operand.dtype), operand.shape, operand.strides};
  return GpuWindow{MemoryOf(operand).address() + operand.offset, operand.rank, ByteSize(operand.dtype), operand.shape,
                   operand.strides};
}

absl::StatusOr<GpuWindow> Staging::Input(const Operand& operand) {
  absl::StatusOr<GpuWindow> window = Output(operand);
  if (!window.ok() || MemoryOf(operand).on_gpu() || IsEmpty(operand)) return window;
  const std::array<int, kMaxRank> order = OrderOf(operand);
  const auto at = [&](int i) { return static_cast<size_t>(order[static_cast<size_t>(i)]); };
  const int64_t element = window->element_bytes;
  const size_t inner = at(operand.rank - 1);
  const size_t width = static_cast<size_t>(operand.shape[inner] * element);
  const int64_t rows = operand.rank >= 2 ? operand.shape[at(operand.rank - 2)] : 1;
  const int64_t from_pitch = operand.rank >= 2 ? operand.strides[at(operand.rank - 2)] * element : 0;
  const int64_t to_pitch = operand.rank >= 2 ? window->strides[at(operand.rank - 2)] * element : 0;
  const int64_t matrices = operand.rank == 3 ? operand.shape[0] : 1;
  const char* from = MemoryOf(operand).address() + operand.offset;
  for (int64_t matrix = 0; matrix < matrices; ++matrix) {
    const int64_t from_offset = operand.rank == 3 ? matrix * operand.strides[0] * element : 0;
    const int64_t to_offset = operand.rank == 3 ? matrix * window->strides[0] * element : 0;
    // A single row may have any stride.
    const size_t least = width;
    const cudaError_t error =
        cudaMemcpy2DAsync(window->data + to_offset, std::max(least, static_cast<size_t>(to_pitch)), from + from_offset,
                          std::max(least, static_cast<size_t>(from_pitch)), width, static_cast<size_t>(rows),
                          cudaMemcpyHostToDevice, stream_);
    if (error != cudaSuccess) return CudaStatus(error, "copying to the GPU");
  }
  return window;
}

absl::Status Staging::Return(const GpuWindow& window, const Operand& operand, int64_t batch, int64_t begin,
                             int64_t end) {
  if (MemoryOf(operand).on_gpu() || IsEmpty(operand) || begin == end) return absl::OkStatus();
  const std::array<int, kMaxRank> order = OrderOf(operand);
  const auto at = [&](int i) { return static_cast<size_t>(order[static_cast<size_t>(i)]); };
  const int64_t element = window.element_bytes;
  const size_t inner = at(operand.rank - 1);
  // Rows count along the last dimension but one, whether it is the inner one (M-major) or not.
  const size_t row_dimension = static_cast<size_t>(std::max(operand.rank - 2, 0));
  const bool rows_inside = operand.rank >= 2 && inner == row_dimension;
  const int64_t from_offset =
      (operand.rank == 3 ? batch * window.strides[0] : 0) + begin * window.strides[row_dimension];
  const int64_t to_offset =
      (operand.rank == 3 ? batch * operand.strides[0] : 0) + begin * operand.strides[row_dimension];
  const size_t outer = operand.rank >= 2 ? at(operand.rank - 2) : 0;
  const int64_t columns = rows_inside || operand.rank < 2 ? end - begin : operand.shape[inner];
  const int64_t rows = operand.rank < 2 ? 1 : rows_inside ? operand.shape[outer] : end - begin;
  const size_t width = static_cast<size_t>(columns * element);
  const size_t from_pitch = operand.rank < 2 ? width : static_cast<size_t>(window.strides[outer] * element);
  const size_t to_pitch = operand.rank < 2 ? width : static_cast<size_t>(operand.strides[outer] * element);
  char* to = MemoryOf(operand).address() + operand.offset;
  return CudaStatus(
      cudaMemcpy2DAsync(to + to_offset * element, std::max(width, to_pitch), window.data + from_offset * element,
                        std::max(width, from_pitch), width, static_cast<size_t>(rows), cudaMemcpyDeviceToHost, stream_),
      "copying from the GPU");
}

}  // namespace gemmd
