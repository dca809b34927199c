// SPDX-License-Identifier: Apache-2.0
// JobBuilder on arbitrary requests: what it builds must lie inside the memory that it leased. Input: which valid
// request to start from, then a serialized RunRequest that is merged into it.
#include "server/job_builder.h"
#include "tests/fuzz/require.h"
#include "tests/server/service_fixture.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

constexpr uint64_t kMaxInlineBytes = 1 << 16;
constexpr uint64_t kRegionBytes = 1 << 16;

struct World {
  World() {
    session = *state.sessions.Open({.remote = false, .uid = 1}, "fuzz");
    region = *RegisterHost(*state.regions, session, {kRegionBytes, true}, SealedMemory(kRegionBytes));
    builder = std::make_unique<JobBuilder>(Memory{*state.regions, *state.tensors, *state.arena}, kMaxInlineBytes);
  }

  FrontEndState state;
  std::shared_ptr<Session> session;
  uint64_t region = 0;
  std::unique_ptr<JobBuilder> builder;
};

void SetInline(v1::TensorRef& ref, v1::DType dtype, std::initializer_list<int64_t> shape) {
  ref.set_dtype(dtype);
  int64_t bytes = ByteSize(static_cast<DType>(dtype));
  for (const int64_t extent : shape) {
    ref.add_shape(extent);
    bytes *= extent;
  }
  ref.set_inline_(std::string(static_cast<size_t>(bytes), '\0'));
}

void SetSlice(v1::TensorRef& ref, v1::DType dtype, std::initializer_list<int64_t> shape, uint64_t region) {
  ref.set_dtype(dtype);
  for (const int64_t extent : shape) ref.add_shape(extent);
  ref.mutable_slice()->set_region_id(region);
}

// One valid request of each operation; an empty one first.
std::vector<v1::RunRequest> Requests(uint64_t region) {
  std::vector<v1::RunRequest> requests(6);
  v1::Dense& dense = *requests[1].mutable_dense();
  dense.set_scaling(v1::SCALING_1D2D);
  SetInline(*dense.mutable_a(), v1::E4M3, {3, 16});
  SetInline(*dense.mutable_sfa(), v1::F32, {3, 1});
  SetSlice(*dense.mutable_b(), v1::E4M3, {5, 16}, region);
  SetInline(*dense.mutable_sfb(), v1::F32, {1, 1});
  v1::MGroupedContiguous& contiguous = *requests[2].mutable_m_grouped_contiguous();
  SetInline(*contiguous.mutable_a(), v1::BF16, {3, 16});
  SetInline(*contiguous.mutable_b(), v1::BF16, {2, 5, 16});
  SetInline(*contiguous.mutable_row_groups()->mutable_offsets(), v1::I32, {3});
  v1::MGroupedMasked& masked = *requests[3].mutable_m_grouped_masked();
  SetInline(*masked.mutable_a(), v1::BF16, {2, 3, 16});
  SetInline(*masked.mutable_b(), v1::BF16, {2, 5, 16});
  SetInline(*masked.mutable_masked_m(), v1::I32, {2});
  v1::KGrouped& k_grouped = *requests[4].mutable_k_grouped();
  SetInline(*k_grouped.mutable_a(), v1::E4M3, {3 * 16});
  SetInline(*k_grouped.mutable_b(), v1::E4M3, {5 * 16});
  v1::Quantize& quantize = *requests[5].mutable_quantize();
  SetInline(*quantize.mutable_x(), v1::BF16, {3, 16});
  quantize.set_block(v1::Quantize::BLOCK_1X128);
  return requests;
}

void RequireInside(const BuiltJob& job, uint64_t arena_region) {
  Require(job.d_bytes <= kMaxInlineBytes && job.d_offset + job.d_bytes <= job.lease.byte_size());
  Require(job.sf_bytes <= kMaxInlineBytes && job.sf_offset + job.sf_bytes <= job.lease.byte_size());
  for (const OperandDescriptor& operand : job.descriptor.operands) {
    if (operand.region != arena_region) continue;
    Require(job.lease.valid() && operand.offset >= job.lease.offset());
    Require(operand.offset <= job.lease.offset() + job.lease.byte_size());
  }
}

}  // namespace
}  // namespace gemmd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* const world = new gemmd::World;
  static const std::vector<gemmd::v1::RunRequest> requests = gemmd::Requests(world->region);
  if (size == 0) return 0;
  gemmd::v1::RunRequest request = requests[data[0] % requests.size()];
  gemmd::v1::RunRequest changes;
  // What was read before an error counts too.
  (void)changes.ParsePartialFromArray(data + 1, static_cast<int>(size - 1));
  request.MergeFrom(changes);
  {
    const absl::StatusOr<gemmd::BuiltJob> job = world->builder->Build(request, *world->session);
    if (job.ok()) gemmd::RequireInside(*job, world->state.arena->region_id());
    if (!job.ok()) gemmd::Require(!job.status().message().empty());
  }
  gemmd::Require(world->state.arena->bytes_in_use() == 0);
  return 0;
}
