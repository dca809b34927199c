// SPDX-License-Identifier: Apache-2.0
// The descriptor of an Op::kCopy job: how the Tensors service moves bytes between the staging arena, client regions and
// resident tensors.
#ifndef GEMMD_SERVER_COPY_JOB_H_
#define GEMMD_SERVER_COPY_JOB_H_

#include "proto/job.h"

#include <cstdint>

namespace gemmd {

struct RegionOffset {
  uint64_t region = 0;
  uint64_t offset = 0;  // Bytes.
};

struct CopySpec {
  RegionOffset from;
  RegionOffset to;
  uint64_t byte_size = 0;
  uint64_t session = 0;
  uint64_t deadline_ns = 0;
};

inline OperandDescriptor MakeByteOperand(const RegionOffset& at, uint64_t byte_size) {
  OperandDescriptor operand;
  operand.region = at.region;
  operand.offset = at.offset;
  operand.shape[0] = static_cast<int64_t>(byte_size);
  operand.strides[0] = 1;
  operand.dtype = DType::kU8;
  operand.rank = 1;
  return operand;
}

inline JobDescriptor MakeCopyJob(const CopySpec& spec) {
  JobDescriptor job;
  job.op = Op::kCopy;
  job.session = spec.session;
  job.deadline_ns = spec.deadline_ns;
  job.operand(OperandIndex::kA) = MakeByteOperand(spec.from, spec.byte_size);
  job.operand(OperandIndex::kD) = MakeByteOperand(spec.to, spec.byte_size);
  return job;
}

}  // namespace gemmd

#endif  // GEMMD_SERVER_COPY_JOB_H_
