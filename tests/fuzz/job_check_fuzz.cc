// SPDX-License-Identifier: Apache-2.0
// CheckJob and Describe must survive any bytes, and whatever passes must lie inside its memory.
#include "tests/fuzz/job_check_fuzz.h"

#include "gpu/memory_window.h"
#include "proto/job.h"
#include "tests/fuzz/require.h"
#include "tests/gpu/job_samples.h"

#include "absl/types/span.h"

#include <algorithm>
#include <cstring>
#include <variant>
#include <vector>

namespace gemmd {
namespace {

constexpr size_t kGroupBytes = 4096;

// Valid ones, so that a few changed bytes get far; zeros first.
std::vector<JobDescriptor> Bases() {
  using namespace testing;  // NOLINT: the samples.
  return {JobDescriptor(),
          DenseJob(),
          DenseJob(Scaling::k1D1D),
          DenseJob(Scaling::kNone),
          ContiguousJob(GroupEncoding::kOffsets),
          ContiguousJob(GroupEncoding::kRowIndex),
          ContiguousJob(GroupEncoding::kAlignedEnds),
          MaskedJob(),
          KGroupedJob(),
          QuantizeJob(),
          QuantizeJob(QuantizeBlock::k128x128),
          CopyJob(),
          TransposeJob()};
}

// XORs what there is of `size` bytes over `target` and gives the rest.
absl::Span<const uint8_t> Change(absl::Span<const uint8_t> changes, void* target, size_t size) {
  auto* bytes = static_cast<uint8_t*>(target);
  const size_t count = std::min(size, changes.size());
  for (size_t i = 0; i < count; ++i) bytes[i] ^= changes[i];
  return changes.subspan(count);
}

void RequireInside(const Gemm& gemm) {
  for (const Operand& operand : gemm.operands) {
    if (!operand.present()) continue;
    const MemoryWindow window = WindowOf(operand);
    Require(window.begin <= window.end && window.end <= operand.memory->byte_size());
  }
  for (const RowSegment& segment : gemm.segments) {
    Require(segment.group >= 0 && segment.group < gemm.groups);
    Require(segment.begin >= 0 && segment.begin < segment.end && segment.end <= gemm.m);
  }
}

}  // namespace
}  // namespace gemmd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const gemmd::testing::SampleRegions regions;
  static const std::vector<gemmd::JobDescriptor> bases = gemmd::Bases();
  if (size == 0) return 0;
  absl::Span<const uint8_t> changes(data + 1, size - 1);
  gemmd::JobDescriptor job = bases[data[0] % bases.size()];
  std::memset(regions.groups->data(), 0, gemmd::kGroupBytes);
  const std::vector<int32_t> groups = gemmd::testing::SampleGroups(job);
  if (!groups.empty()) std::memcpy(regions.groups->data(), groups.data(), groups.size() * sizeof(int32_t));
  changes = gemmd::Change(changes, &job, sizeof(job));
  gemmd::Change(changes, regions.groups->data(), gemmd::kGroupBytes);

  const auto result = regions.Check(job);
  if (const auto* gemm = std::get_if<gemmd::Gemm>(&result)) gemmd::RequireInside(*gemm);
  if (const auto* reason = std::get_if<gemmd::Reason>(&result)) {
    gemmd::Require(reason->rule != gemmd::Rule::kNone && gemmd::CodeOf(reason->rule) != 0);
    gemmd::Require(!gemmd::Describe(*reason).empty());
  }
  gemmd::Reason any;
  std::memcpy(static_cast<void*>(&any), static_cast<const void*>(&job), sizeof(any));
  gemmd::Require(!gemmd::Describe(any).empty());
  return 0;
}
