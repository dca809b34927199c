// SPDX-License-Identifier: Apache-2.0
// Valid jobs to start tests from, on a table of three regions: one to read and write, one to read only, one with group
// arrays. Used by the tests of the check and the worker, and by the fuzz target.
#ifndef GEMMD_TESTS_GPU_JOB_SAMPLES_H_
#define GEMMD_TESTS_GPU_JOB_SAMPLES_H_

#include "gpu/job_check.h"
#include "gpu/region_table.h"
#include "proto/job.h"
#include "tests/gpu/fake_device.h"

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <variant>
#include <vector>

namespace gemmd::testing {

inline constexpr uint64_t kDataRegion = 1;
inline constexpr uint64_t kReadOnlyRegion = 2;
inline constexpr uint64_t kGroupRegion = 3;
inline constexpr uint64_t kRegionBytes = 1 << 20;

struct SampleRegions {
  SampleRegions() : groups(std::make_shared<HeapMemory>(kRegionBytes)) {
    table.Add(kDataRegion, std::make_shared<HeapMemory>(kRegionBytes), Access::kReadWrite);
    table.Add(kReadOnlyRegion, std::make_shared<HeapMemory>(kRegionBytes), Access::kReadOnly);
    table.Add(kGroupRegion, groups, Access::kReadWrite);
  }
  template <typename T>
  void SetGroups(const std::vector<T>& values) {
    if (!values.empty()) std::memcpy(groups->data(), values.data(), values.size() * sizeof(T));
  }
  std::variant<Gemm, Reason> Check(const JobDescriptor& job) const {
    return CheckJob(job, [this](uint64_t id) { return table.Find(id); });
  }

  RegionTable table;
  std::shared_ptr<HeapMemory> groups;
};

// Contiguous.
inline OperandDescriptor MakeOperand(uint64_t region, uint64_t offset, DType dtype,
                                     std::initializer_list<int64_t> shape) {
  OperandDescriptor operand;
  operand.region = region;
  operand.offset = offset;
  operand.dtype = dtype;
  operand.rank = static_cast<uint8_t>(shape.size());
  std::copy(shape.begin(), shape.end(), operand.shape);
  int64_t stride = 1;
  for (int i = operand.rank - 1; i >= 0; --i) {
    operand.strides[i] = stride;
    stride *= operand.shape[i];
  }
  return operand;
}

inline constexpr int64_t kM = 24, kN = 160, kK = 256, kG = 3;

inline void SetOutput(JobDescriptor& job, DType dtype, std::initializer_list<int64_t> shape) {
  job.operand(OperandIndex::kD) = MakeOperand(kDataRegion, 0x80000, dtype, shape);
}

inline JobDescriptor DenseJob(Scaling scaling = Scaling::k1D2D) {
  const bool fp8 = scaling != Scaling::kNone;
  JobDescriptor job;
  job.job_id = 1;
  job.op = Op::kDense;
  job.scaling = scaling;
  job.operand(OperandIndex::kA) = MakeOperand(kReadOnlyRegion, 0, fp8 ? DType::kE4m3 : DType::kBf16, {kM, kK});
  job.operand(OperandIndex::kB) = MakeOperand(kReadOnlyRegion, 0x10000, fp8 ? DType::kE4m3 : DType::kBf16, {kN, kK});
  if (fp8) {
    job.operand(OperandIndex::kSfa) = MakeOperand(kReadOnlyRegion, 0x60000, DType::kF32, {kM, 2});
    job.operand(OperandIndex::kSfb) =
        MakeOperand(kReadOnlyRegion, 0x70000, DType::kF32, {scaling == Scaling::k1D1D ? kN : 2, 2});
  }
  SetOutput(job, DType::kBf16, {kM, kN});
  return job;
}

// Group arrays are I32 at the start of kGroupRegion; the caller writes them there (SampleGroups are valid ones).
inline JobDescriptor ContiguousJob(GroupEncoding encoding = GroupEncoding::kOffsets) {
  JobDescriptor job = DenseJob();
  job.op = Op::kMGroupedContiguous;
  job.group_encoding = encoding;
  job.operand(OperandIndex::kB) = MakeOperand(kReadOnlyRegion, 0x10000, DType::kE4m3, {kG, kN, kK});
  job.operand(OperandIndex::kSfb) = MakeOperand(kReadOnlyRegion, 0x70000, DType::kF32, {kG, 2, 2});
  const int64_t count = encoding == GroupEncoding::kOffsets ? kG + 1 : encoding == GroupEncoding::kRowIndex ? kM : kG;
  job.operand(OperandIndex::kGroups) = MakeOperand(kGroupRegion, 0, DType::kI32, {count});
  if (encoding == GroupEncoding::kAlignedEnds) job.group_alignment = 8;
  return job;
}

inline JobDescriptor MaskedJob() {
  JobDescriptor job = ContiguousJob(GroupEncoding::kMasked);
  job.op = Op::kMGroupedMasked;
  job.operand(OperandIndex::kA) = MakeOperand(kReadOnlyRegion, 0, DType::kE4m3, {kG, kM, kK});
  job.operand(OperandIndex::kSfa) = MakeOperand(kReadOnlyRegion, 0x60000, DType::kF32, {kG, kM, 2});
  SetOutput(job, DType::kBf16, {kG, kM, kN});
  return job;
}

inline constexpr int64_t kKSum = 64 + 0 + 144;

inline JobDescriptor KGroupedJob() {
  JobDescriptor job;
  job.op = Op::kKGrouped;
  job.scaling = Scaling::k1D1D;
  job.group_encoding = GroupEncoding::kKSizes;
  job.operand(OperandIndex::kA) = MakeOperand(kReadOnlyRegion, 0, DType::kE4m3, {kM * kKSum});
  job.operand(OperandIndex::kSfa) = MakeOperand(kReadOnlyRegion, 0x60000, DType::kF32, {kM, 3});
  job.operand(OperandIndex::kB) = MakeOperand(kReadOnlyRegion, 0x10000, DType::kE4m3, {kN * kKSum});
  job.operand(OperandIndex::kSfb) = MakeOperand(kReadOnlyRegion, 0x70000, DType::kF32, {kN, 3});
  job.operand(OperandIndex::kGroups) = MakeOperand(kGroupRegion, 0, DType::kI32, {kG});
  SetOutput(job, DType::kF32, {kG, kM, kN});
  return job;
}

inline JobDescriptor QuantizeJob(QuantizeBlock block = QuantizeBlock::k1x128) {
  JobDescriptor job;
  job.op = Op::kQuantize;
  job.quantize_block = block;
  job.operand(OperandIndex::kA) = MakeOperand(kReadOnlyRegion, 0, DType::kBf16, {kM, kK});
  job.operand(OperandIndex::kSfd) =
      MakeOperand(kDataRegion, 0xf0000, DType::kF32, {block == QuantizeBlock::k1x128 ? kM : 1, 2});
  SetOutput(job, DType::kE4m3, {kM, kK});
  return job;
}

inline JobDescriptor CopyJob() {
  JobDescriptor job;
  job.op = Op::kCopy;
  job.operand(OperandIndex::kA) = MakeOperand(kReadOnlyRegion, 3, DType::kU8, {1001});
  job.operand(OperandIndex::kD) = MakeOperand(kDataRegion, 5, DType::kU8, {1001});
  return job;
}

// Rows of the result have an odd pitch: no alignment beyond that of an element is needed.
inline JobDescriptor TransposeJob(DType dtype = DType::kBf16) {
  JobDescriptor job;
  job.op = Op::kTranspose;
  job.operand(OperandIndex::kA) = MakeOperand(kReadOnlyRegion, 12, dtype, {kM + 1, kK});
  SetOutput(job, dtype, {kK, kM + 1});
  return job;
}

// A valid group array for the job's encoding.
inline std::vector<int32_t> SampleGroups(const JobDescriptor& job) {
  switch (job.group_encoding) {
    case GroupEncoding::kOffsets:
      return {0, 5, 5, static_cast<int32_t>(kM)};
    case GroupEncoding::kRowIndex: {
      std::vector<int32_t> index(kM, 2);
      for (size_t i = 0; i < 6; ++i) index[i] = i < 4 ? 0 : -1;
      return index;
    }
    case GroupEncoding::kAlignedEnds:
      return {3, 8, 20};
    case GroupEncoding::kMasked:
      return {0, static_cast<int32_t>(kM), 7};
    case GroupEncoding::kKSizes:
      return {64, 0, 144};
    default:
      return {};
  }
}

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_GPU_JOB_SAMPLES_H_
