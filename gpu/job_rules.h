// SPDX-License-Identifier: Apache-2.0
// What each operation takes: which operands, of which dtypes, ranks and layouts. Pure; used by the job check only.
#ifndef GEMMD_GPU_JOB_RULES_H_
#define GEMMD_GPU_JOB_RULES_H_

#include "proto/job.h"

#include <array>
#include <cstdint>

namespace gemmd {

enum class Layout : uint8_t {
  kMatrix,       // Last stride 1, other pitches and the first element on 16 bytes.
  kScaleRows,    // One scale factor per row and 128 columns: row-major, or M-major with a pitch on 16 bytes.
  kScaleBlocks,  // One scale factor per 128x128: row-major.
  kFlat,         // Rank 1, first element on 16 bytes.
  kGroupArray,   // Rank 1.
  kBytes,        // Rank 1, any alignment.
  kElements,     // Last stride 1, any other pitch; the first element aligned to its size.
};

// A set of DType values, one bit each.
using DTypeSet = uint32_t;
constexpr DTypeSet SetOf(DType dtype) { return DTypeSet{1} << static_cast<int>(dtype); }

struct OperandRule {
  bool taken = false;
  DTypeSet dtypes = 0;
  uint8_t rank = 0;
  Layout layout = Layout::kMatrix;
};

struct OperationRules {
  std::array<OperandRule, kOperandCount> operands{};
  OperandRule& operand(OperandIndex index) { return operands[static_cast<size_t>(index)]; }
  const OperandRule& operand(OperandIndex index) const { return operands[static_cast<size_t>(index)]; }
};

// Rule::kNone if everything in the descriptor apart from operands is legal: op, flags, priority, scaling, encodings.
Reason CheckHeader(const JobDescriptor& job);

// Requires: CheckHeader(job) passed.
OperationRules RulesOf(const JobDescriptor& job);

}  // namespace gemmd

#endif  // GEMMD_GPU_JOB_RULES_H_
