// SPDX-License-Identifier: Apache-2.0
// CheckJob and Describe must survive any bytes, and whatever passes must lie inside its memory.
#include "tests/fuzz/job_check_fuzz.h"

#include "gpu/memory_window.h"
#include "proto/job.h"
#include "tests/gpu/job_samples.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <variant>

namespace gemmd {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
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
  gemmd::JobDescriptor job;
  std::memset(static_cast<void*>(&job), 0, sizeof(job));
  const size_t used = std::min(size, sizeof(job));
  if (used > 0) std::memcpy(static_cast<void*>(&job), data, used);
  const size_t group_bytes = std::min<size_t>(size - used, 4096);
  std::memset(regions.groups->data(), 0, 4096);
  if (group_bytes > 0) std::memcpy(regions.groups->data(), data + used, group_bytes);

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
