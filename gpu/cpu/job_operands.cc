// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/job_operands.h"

#include "gpu/cpu/cpu_memory.h"
#include "gpu/device.h"

#include "absl/status/status.h"

#include <algorithm>
#include <cstddef>

namespace gemmd {
namespace {

// Bytes from the first element to the end of the last.
uint64_t SpanBytes(const Operand& operand) {
  int64_t last = 0;
  for (size_t i = 0; i < static_cast<size_t>(operand.rank); ++i) {
    if (operand.shape[i] == 0) return 0;
    last += (operand.shape[i] - 1) * operand.strides[i];
  }
  return static_cast<uint64_t>((last + 1) * ByteSize(operand.dtype));
}

JobField FieldOf(OperandIndex index) {
  return static_cast<JobField>(static_cast<uint8_t>(JobField::kA) + static_cast<uint8_t>(index));
}

CpuMemory& MemoryOf(const Operand& operand) { return static_cast<CpuMemory&>(*operand.memory); }

}  // namespace

JobOperands::JobOperands(const Gemm& gemm, uint64_t scratch_limit_bytes)
    : gemm_(gemm), scratch_left_(scratch_limit_bytes) {}

bool JobOperands::IsCopied(OperandIndex index) const {
  const Operand& operand = gemm_.operand(index);
  return operand.present() && MemoryOf(operand).data() == nullptr;
}

std::byte* JobOperands::Allocate(uint64_t byte_size) {
  if (byte_size > scratch_left_) return nullptr;
  Scratch scratch = AllocateScratch(byte_size);
  if (scratch == nullptr) return nullptr;
  scratch_left_ -= byte_size;
  scratch_.push_back(std::move(scratch));
  return scratch_.back().get();
}

Reason JobOperands::Load() {
  for (int i = 0; i < kOperandCount; ++i) {
    const auto index = static_cast<OperandIndex>(i);
    if (!gemm_.operand(index).present()) continue;
    const Reason reason = LoadOperand(index);
    if (reason.rule != Rule::kNone) return reason;
  }
  return {};
}

Reason JobOperands::LoadOperand(OperandIndex index) {
  const Operand& operand = gemm_.operand(index);
  std::byte*& data = data_[static_cast<size_t>(index)];
  if (!IsCopied(index)) {
    data = MemoryOf(operand).data() + operand.offset;
    return {};
  }
  // The whole span at once, so that strides stay as they are; for an output the bytes between rows are never written.
  const uint64_t span = SpanBytes(operand);
  data = Allocate(span);
  if (data == nullptr) {
    Reason reason;
    reason.field = FieldOf(index);
    reason.rule = Rule::kOutOfMemory;
    reason.got = static_cast<int64_t>(span);
    return reason;
  }
  const bool is_output = index == OperandIndex::kD || index == OperandIndex::kSfd;
  if (is_output && !gemm_.accumulate) return {};
  return FailureReason(FieldOf(index), operand.memory->ReadBytes(operand.offset, span, data));
}

HostMatrix JobOperands::Matrix(OperandIndex index) const {
  const Operand& operand = gemm_.operand(index);
  if (!operand.present()) return {};
  return {data_[static_cast<size_t>(index)],
          operand.dtype,
          operand.shape[0],
          operand.shape[1],
          operand.strides[0],
          operand.strides[1]};
}

HostMatrix JobOperands::Matrix(OperandIndex index, int64_t group) const {
  const Operand& operand = gemm_.operand(index);
  if (!operand.present()) return {};
  std::byte* data = data_[static_cast<size_t>(index)] + group * operand.strides[0] * ByteSize(operand.dtype);
  return {data, operand.dtype, operand.shape[1], operand.shape[2], operand.strides[1], operand.strides[2]};
}

HostMatrix JobOperands::Flat(OperandIndex index, int64_t element, int64_t rows, int64_t columns) const {
  const DType dtype = gemm_.operand(index).dtype;
  return {data_[static_cast<size_t>(index)] + element * ByteSize(dtype), dtype, rows, columns, columns, 1};
}

void JobOperands::AddOutput(OperandIndex index, const HostMatrix& window) {
  if (IsCopied(index)) outputs_.push_back({index, window});
}

Reason JobOperands::Store() {
  for (const Output& output : outputs_) {
    const Reason reason = StoreRows(output);
    if (reason.rule != Rule::kNone) return reason;
  }
  return {};
}

Reason JobOperands::StoreRows(const Output& output) {
  const Operand& operand = gemm_.operand(output.index);
  const HostMatrix& window = output.window;
  // Runs of adjacent elements: rows, or columns where that is the dense dimension.
  const bool by_row = window.column_stride == 1;
  const int64_t runs = by_row ? window.rows : window.columns;
  const int64_t run_elements = by_row ? window.columns : window.rows;
  if (run_elements == 0) return {};
  for (int64_t run = 0; run < runs; ++run) {
    const std::byte* from = by_row ? window.At(run, 0) : window.At(0, run);
    const auto offset = static_cast<uint64_t>(from - data_[static_cast<size_t>(output.index)]);
    const auto byte_size = static_cast<uint64_t>(run_elements * ByteSize(window.dtype));
    const absl::Status status = MemoryOf(operand).WriteBytes(operand.offset + offset, byte_size, from);
    if (!status.ok()) return FailureReason(FieldOf(output.index), status);
  }
  return {};
}

}  // namespace gemmd
