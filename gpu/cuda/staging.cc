// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/staging.h"

#include "gpu/cuda/cuda_memory.h"
#include "gpu/cuda_status.h"

#include <algorithm>

namespace gemmd {
namespace {

constexpr size_t kScratchAlignment = 256;
constexpr int64_t kPitchBytes = 16;  // TMA takes row pitches that are multiples of 16 bytes.
// What a copy must save: enqueueing one takes the host about 5 us, in which PCIe moves that much.
constexpr int64_t kWorthACopy = 256 << 10;

const CudaMemory& MemoryOf(const Operand& operand) { return static_cast<const CudaMemory&>(*operand.memory); }

char* AddressOf(const Operand& operand) { return MemoryOf(operand).address() + operand.offset; }

bool IsEmpty(const Operand& operand) {
  return std::any_of(operand.shape.begin(), operand.shape.begin() + operand.rank, [](int64_t n) { return n == 0; });
}

// A window as matrices of rows of columns that lie side by side: `row` is the last dimension but one, or the last where
// that is the one with stride 1 (M-major scale factors). -1: the window has no such dimension.
struct Dimensions {
  int matrix = -1;
  int row = -1;
  int column = 0;
};

Dimensions DimensionsOf(const Operand& operand) {
  const int last = operand.rank - 1;
  Dimensions dimensions{operand.rank == 3 ? 0 : -1, operand.rank >= 2 ? last - 1 : -1, last};
  if (operand.rank >= 2 && operand.strides[static_cast<size_t>(last)] != 1 &&
      operand.strides[static_cast<size_t>(last - 1)] == 1) {
    std::swap(dimensions.row, dimensions.column);
  }
  return dimensions;
}

int64_t At(const std::array<int64_t, kMaxRank>& values, int dimension, int64_t otherwise) {
  return dimension < 0 ? otherwise : values[static_cast<size_t>(dimension)];
}

// From the first element to just past the last, and how many of those there are; in elements.
int64_t SpanOf(const Operand& operand) {
  int64_t span = 1;
  for (size_t i = 0; i < static_cast<size_t>(operand.rank); ++i) span += (operand.shape[i] - 1) * operand.strides[i];
  return span;
}
int64_t CountOf(const Operand& operand) {
  int64_t count = 1;
  for (size_t i = 0; i < static_cast<size_t>(operand.rank); ++i) count *= operand.shape[i];
  return count;
}

// Strides of a copy on the GPU, rows on 16 bytes, or the operand's own if `keep`. Dimensions with one element may have
// any stride: theirs is always made anew.
GpuWindow LayOut(const Operand& operand, char* data, bool keep) {
  GpuWindow window{data, operand.rank, ByteSize(operand.dtype), operand.shape, {}};
  const Dimensions dimensions = DimensionsOf(operand);
  const int64_t multiple = kPitchBytes / window.element_bytes;
  const int64_t columns = At(operand.shape, dimensions.column, 1);
  int64_t stride = (columns + multiple - 1) / multiple * multiple;
  window.strides[static_cast<size_t>(dimensions.column)] = 1;
  for (const int dimension : {dimensions.row, dimensions.matrix}) {
    if (dimension < 0) continue;
    const size_t i = static_cast<size_t>(dimension);
    if (keep && operand.shape[i] > 1) stride = operand.strides[i];
    window.strides[i] = stride;
    stride *= std::max<int64_t>(operand.shape[i], 1);
  }
  return window;
}

// Scratch of another batch that is still running is the last resort: whoever takes it waits for that batch.
cudaError_t AllocateAfterOthers(void** data, size_t byte_size, cudaStream_t stream) {
  int device = 0;
  cudaMemPool_t pool = nullptr;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetDefaultMemPool(&pool, device) != cudaSuccess)
    return cudaErrorMemoryAllocation;
  int allowed = 1;
  cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &allowed);
  const cudaError_t error = cudaMallocAsync(data, byte_size, stream);
  allowed = 0;
  cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &allowed);
  return error;
}

}  // namespace

absl::Status CopyRows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t width, int64_t rows,
                      cudaStream_t stream) {
  if (rows == 0 || width == 0) return absl::OkStatus();
  const size_t w = static_cast<size_t>(width);
  const size_t count = static_cast<size_t>(rows);
  if (rows == 1 || (to_pitch == width && from_pitch == width)) {
    return CudaStatus(cudaMemcpyAsync(to, from, w * count, cudaMemcpyDefault, stream), "copying");
  }
  return CudaStatus(cudaMemcpy2DAsync(to, static_cast<size_t>(to_pitch), from, static_cast<size_t>(from_pitch), w,
                                      count, cudaMemcpyDefault, stream),
                    "copying rows");
}

Staging::~Staging() {
  for (void* allocation : allocations_) cudaFreeAsync(allocation, stream_);
}

absl::StatusOr<char*> Staging::Allocate(int64_t byte_size) {
  if (byte_size == 0) return scratch_.data();
  const size_t size = static_cast<size_t>(byte_size);
  if (size <= scratch_.size() - scratch_used_) {
    char* const data = scratch_.data() + scratch_used_;
    scratch_used_ = std::min((scratch_used_ + size + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment,
                             scratch_.size());
    return data;
  }
  void* data = nullptr;
  cudaError_t error = cudaMallocAsync(&data, size, stream_);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    error = AllocateAfterOthers(&data, size, stream_);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return CudaStatus(error, "scratch memory");
  }
  allocations_.push_back(data);
  return static_cast<char*>(data);
}

absl::StatusOr<GpuWindow> Staging::Output(const Operand& operand) {
  if (absl::Status status = MemoryOf(operand).CheckStillThere(); !status.ok()) return status;
  // Nobody has checked the strides of an operand without elements.
  if (IsEmpty(operand)) return LayOut(operand, scratch_.data(), false);
  if (MemoryOf(operand).on_device()) {
    return GpuWindow{AddressOf(operand), operand.rank, ByteSize(operand.dtype), operand.shape, operand.strides};
  }
  return Room(operand);
}

absl::StatusOr<GpuWindow> Staging::Room(const Operand& operand) {
  GpuWindow window = LayOut(operand, nullptr, SpanOf(operand) == CountOf(operand));
  const Dimensions dimensions = DimensionsOf(operand);
  const int outer = dimensions.matrix >= 0 ? dimensions.matrix : dimensions.row;
  const int64_t elements = outer < 0 ? operand.shape[0] : At(window.strides, outer, 1) * At(operand.shape, outer, 1);
  absl::StatusOr<char*> data = Allocate(elements * window.element_bytes);
  if (!data.ok()) return data.status();
  window.data = *data;
  return window;
}

absl::StatusOr<GpuWindow> Staging::Input(const Operand& operand) {
  if (MemoryOf(operand).on_device() || IsEmpty(operand)) return Output(operand);
  if (absl::Status status = MemoryOf(operand).CheckStillThere(); !status.ok()) return status;
  return Copied(operand);
}

absl::StatusOr<GpuWindow> Staging::Result(const Operand& operand, bool with_contents) {
  const int64_t row_bytes = operand.shape[static_cast<size_t>(operand.rank - 1)] * ByteSize(operand.dtype);
  if (!MemoryOf(operand).on_device() || IsEmpty(operand) || row_bytes % kPitchBytes == 0)
    return with_contents ? Input(operand) : Output(operand);
  return with_contents ? Copied(operand) : Room(operand);
}

absl::StatusOr<GpuWindow> Staging::Copied(const Operand& operand) {
  const int64_t element = ByteSize(operand.dtype);
  const int64_t span = SpanOf(operand);
  const char* from = AddressOf(operand);
  // What lies between the rows may come along if it is little. All of it is inside the region.
  const bool whole = span <= CountOf(operand) + CountOf(operand) / 8;
  GpuWindow window = LayOut(operand, nullptr, whole);
  const Dimensions dimensions = DimensionsOf(operand);
  const int64_t columns = At(operand.shape, dimensions.column, 1);
  const int64_t rows = At(operand.shape, dimensions.row, 1);
  const int64_t matrices = At(operand.shape, dimensions.matrix, 1);
  const int64_t row_stride = At(window.strides, dimensions.row, columns);
  const int64_t matrix_stride = At(window.strides, dimensions.matrix, row_stride * rows);
  absl::StatusOr<char*> data = Allocate(matrix_stride * matrices * element);
  if (!data.ok()) return data.status();
  window.data = *data;
  if (whole) {
    absl::Status status = CopyRows(window.data, 0, from, 0, span * element, 1, stream_);
    if (!status.ok()) return status;
    return window;
  }
  for (int64_t matrix = 0; matrix < matrices; ++matrix) {
    absl::Status status =
        CopyRows(window.data + matrix * matrix_stride * element, row_stride * element,
                 from + matrix * At(operand.strides, dimensions.matrix, 0) * element,
                 At(operand.strides, dimensions.row, columns) * element, columns * element, rows, stream_);
    if (!status.ok()) return status;
  }
  return window;
}

absl::StatusOr<GpuWindow> Staging::InputRows(const Operand& operand, absl::Span<const RowSegment> rows) {
  int64_t unused = operand.shape[0] * operand.shape[1];
  for (const RowSegment& segment : rows) unused -= segment.end - segment.begin;
  const int64_t saved = unused * operand.shape[2] * ByteSize(operand.dtype);
  if (MemoryOf(operand).on_device() || saved < static_cast<int64_t>(rows.size()) * kWorthACopy) return Input(operand);
  absl::StatusOr<GpuWindow> window = Output(operand);
  for (const RowSegment& segment : rows) {
    if (!window.ok()) break;
    const absl::Status status =
        CopyPart(Direction::kToWindow, *window, operand, segment.group, segment.begin, segment.end);
    if (!status.ok()) window = status;
  }
  return window;
}

absl::Status Staging::Return(const GpuWindow& window, const Operand& operand, int64_t batch, int64_t begin,
                             int64_t end) {
  return CopyPart(Direction::kToOperand, window, operand, batch, begin, end);
}

absl::Status Staging::CopyPart(Direction direction, const GpuWindow& window, const Operand& operand, int64_t batch,
                               int64_t begin, int64_t end) {
  if (window.data == AddressOf(operand) || IsEmpty(operand) || begin == end) return absl::OkStatus();
  const int64_t element = window.element_bytes;
  const Dimensions dimensions = DimensionsOf(operand);
  // Rows count along the last dimension but one, whether that is the inner one (M-major) or not.
  const int counted = std::max(operand.rank - 2, 0);
  const bool rows_inside = dimensions.column == counted;
  const auto offset = [&](const std::array<int64_t, kMaxRank>& strides) {
    return (At(strides, dimensions.matrix, 0) * batch + At(strides, counted, 0) * begin) * element;
  };
  const int64_t columns = rows_inside ? end - begin : At(operand.shape, dimensions.column, 1);
  const int64_t rows = rows_inside ? At(operand.shape, dimensions.row, 1) : end - begin;
  char* there = AddressOf(operand) + offset(operand.strides);
  char* here = window.data + offset(window.strides);
  const int64_t there_pitch = At(operand.strides, dimensions.row, columns) * element;
  const int64_t here_pitch = At(window.strides, dimensions.row, columns) * element;
  if (direction == Direction::kToWindow)
    return CopyRows(here, here_pitch, there, there_pitch, columns * element, rows, stream_);
  return CopyRows(there, there_pitch, here, here_pitch, columns * element, rows, stream_);
}

}  // namespace gemmd
