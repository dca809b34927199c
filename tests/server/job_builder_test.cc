// SPDX-License-Identifier: Apache-2.0
#include "server/job_builder.h"

#include "tests/server/service_fixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <utility>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMaxInline = 1 << 20;

void SetRef(v1::TensorRef& ref, v1::DType dtype, std::initializer_list<int64_t> shape) {
  ref.set_dtype(dtype);
  for (int64_t extent : shape) ref.add_shape(extent);
}

void SetInline(v1::TensorRef& ref, v1::DType dtype, std::initializer_list<int64_t> shape) {
  SetRef(ref, dtype, shape);
  int64_t bytes = ByteSize(static_cast<DType>(dtype));
  for (int64_t extent : shape) bytes *= extent;
  ref.set_inline_(std::string(static_cast<size_t>(bytes), 'x'));
}

// A dense product of inline operands: M 3, N 5, K 16.
v1::RunRequest Dense() {
  v1::RunRequest request;
  v1::Dense& dense = *request.mutable_dense();
  dense.set_scaling(v1::SCALING_1D2D);
  SetInline(*dense.mutable_a(), v1::E4M3, {3, 16});
  SetInline(*dense.mutable_sfa(), v1::F32, {3, 1});
  SetInline(*dense.mutable_b(), v1::E4M3, {5, 16});
  SetInline(*dense.mutable_sfb(), v1::F32, {1, 1});
  return request;
}

class JobBuilderTest : public ::testing::Test {
 protected:
  JobBuilderTest() { session_ = *state_.sessions.Open({.remote = false, .uid = 1}, "test"); }

  absl::StatusOr<BuiltJob> Build(const v1::RunRequest& request) { return builder_.Build(request, *session_); }
  absl::Status Error(const v1::RunRequest& request) { return Build(request).status(); }
  void ExpectInvalid(const v1::RunRequest& request, const std::string& message) {
    const absl::Status status = Error(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), message);
    EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
  }

  FrontEndState state_;
  std::shared_ptr<Session> session_;
  JobBuilder builder_{Memory{*state_.regions, *state_.tensors, *state_.arena}, kMaxInline};
};

TEST_F(JobBuilderTest, InlineBytesAreCopiedIntoTheArena) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_b()->set_inline_(std::string(80, 'b'));
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  const OperandDescriptor& b = job->descriptor.operand(OperandIndex::kB);
  EXPECT_EQ(b.region, state_.arena->region_id());
  EXPECT_EQ(b.offset % 64, 0u);
  EXPECT_EQ(std::memcmp(job->lease.data() + (b.offset - job->lease.offset()), std::string(80, 'b').data(), 80), 0);
  EXPECT_EQ(job->transport, Transport::kInline);
  EXPECT_EQ(job->workers, kAllWorkers);
}

TEST_F(JobBuilderTest, TheArenaIsFreeAgainWhenTheJobGoes) {
  { EXPECT_TRUE(Build(Dense()).ok()); }
  EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
}

TEST_F(JobBuilderTest, ShapesAndStridesAreFilledIn) {
  absl::StatusOr<BuiltJob> job = Build(Dense());
  ASSERT_TRUE(job.ok());
  const OperandDescriptor& a = job->descriptor.operand(OperandIndex::kA);
  EXPECT_EQ(a.rank, 2);
  EXPECT_EQ(a.strides[0], 16);
  EXPECT_EQ(a.strides[1], 1);
  EXPECT_EQ(job->descriptor.op, Op::kDense);
  EXPECT_EQ(job->descriptor.scaling, Scaling::k1D2D);
  EXPECT_EQ(job->descriptor.session, session_->id());
}

TEST_F(JobBuilderTest, AnInlineResultGetsItsShapeFromTheOperands) {
  absl::StatusOr<BuiltJob> job = Build(Dense());
  ASSERT_TRUE(job.ok());
  const OperandDescriptor& d = job->descriptor.operand(OperandIndex::kD);
  EXPECT_EQ(d.dtype, DType::kBf16);
  EXPECT_EQ(d.shape[0], 3);
  EXPECT_EQ(d.shape[1], 5);
  EXPECT_EQ(job->d_bytes, 30u);
}

TEST_F(JobBuilderTest, TheDtypeOfAnInlineResultIsTheClients) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_d()->set_dtype(v1::F32);
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->d_bytes, 60u);
}

TEST_F(JobBuilderTest, TooFewInlineBytesAreRefused) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_a()->mutable_inline_()->pop_back();
  ExpectInvalid(request, "a.inline: expected 48 bytes, got 47");
}

TEST_F(JobBuilderTest, AnOverflowingShapeIsRefusedBeforeAnyAllocation) {
  v1::RunRequest request = Dense();
  v1::TensorRef& a = *request.mutable_dense()->mutable_a();
  a.set_shape(0, int64_t{1} << 62);
  a.set_shape(1, int64_t{1} << 62);
  EXPECT_EQ(Error(request).code(), absl::StatusCode::kInvalidArgument);
  a.set_shape(0, -1);
  EXPECT_EQ(Error(request).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(JobBuilderTest, EmptyOperandsAreTaken) {
  v1::RunRequest request;
  v1::Dense& dense = *request.mutable_dense();
  SetInline(*dense.mutable_a(), v1::E4M3, {0, 16});
  SetInline(*dense.mutable_b(), v1::E4M3, {5, 16});
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->d_bytes, 0u);
  EXPECT_NE(job->descriptor.operand(OperandIndex::kD).region, 0u);
}

TEST_F(JobBuilderTest, StridesOfInlineOperandsAreRefused) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_a()->add_strides(16);
  request.mutable_dense()->mutable_a()->add_strides(1);
  ExpectInvalid(request, "a.strides: expected 0, got 2");
}

TEST_F(JobBuilderTest, MoreThanThreeDimensionsAreRefused) {
  v1::RunRequest request = Dense();
  for (int i = 0; i < 100; ++i) request.mutable_dense()->mutable_b()->add_shape(1);
  ExpectInvalid(request, "b.shape: expected at most 3 dimensions, got 102");
}

TEST_F(JobBuilderTest, UnknownElementTypesAreRefused) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_a()->set_dtype(static_cast<v1::DType>(257));
  ExpectInvalid(request, "a.dtype: expected an element type, got 257");
  request = Dense();
  request.mutable_dense()->mutable_a()->clear_dtype();
  ExpectInvalid(request, "a.dtype: expected an element type, got none");
}

TEST_F(JobBuilderTest, AnInputWithoutASourceIsRefused) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_a()->clear_source();
  ExpectInvalid(request, "a: expected inline bytes, a slice or a tensor, got none");
}

TEST_F(JobBuilderTest, ARequestWithoutAnOperationIsRefused) { ExpectInvalid({}, "operation: expected one, got none"); }

TEST_F(JobBuilderTest, AccumulatingIntoAnInlineResultIsRefused) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->set_accumulate(true);
  ExpectInvalid(request, "d: expected a slice or a tensor to accumulate into, got inline");
}

TEST_F(JobBuilderTest, AResultThatFitsNoMessageIsRefused) {
  v1::RunRequest request = Dense();
  SetRef(*request.mutable_dense()->mutable_d(), v1::F32, {1024, 1024});
  EXPECT_THAT(std::string(Error(request).message()), HasSubstr("d: expected an inline result of at most"));
}

TEST_F(JobBuilderTest, BytesInAnInlineResultAreRefused) {
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_d()->set_inline_("x");
  ExpectInvalid(request, "d.inline: expected no bytes for a result, got 1");
}

TEST_F(JobBuilderTest, AFullArenaIsResourceExhausted) {
  absl::StatusOr<ArenaLease> all = state_.arena->Allocate(state_.arena->byte_size() - 64);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(Error(Dense()).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(JobBuilderTest, ASliceBecomesAWindowOnItsRegion) {
  const absl::StatusOr<uint64_t> region = RegisterHost(*state_.regions, session_, {4096, true}, SealedMemory(4096));
  ASSERT_TRUE(region.ok());
  v1::RunRequest request = Dense();
  v1::TensorRef& d = *request.mutable_dense()->mutable_d();
  SetRef(d, v1::BF16, {3, 5});
  d.mutable_slice()->set_region_id(*region);
  d.mutable_slice()->set_offset(128);
  d.add_strides(8);
  d.add_strides(1);
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  const OperandDescriptor& operand = job->descriptor.operand(OperandIndex::kD);
  EXPECT_EQ(operand.region, *region);
  EXPECT_EQ(operand.offset, 128u);
  EXPECT_EQ(operand.strides[0], 8);
  EXPECT_EQ(job->d_bytes, 0u);
  EXPECT_EQ(job->transport, Transport::kHost);
}

TEST_F(JobBuilderTest, MemoryOnAGpuGoesToItsWorkers) {
  const absl::StatusOr<uint64_t> region =
      RegisterDevice(*state_.regions, session_, {4096, true}, kFakeGpu, SealedMemory(4096));
  ASSERT_TRUE(region.ok()) << region.status();
  v1::RunRequest request = Dense();
  v1::TensorRef& d = *request.mutable_dense()->mutable_d();
  SetRef(d, v1::BF16, {3, 5});
  d.mutable_slice()->set_region_id(*region);
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->workers, MaskOf(0));
  EXPECT_EQ(job->transport, Transport::kDevice);
}

TEST_F(JobBuilderTest, AForeignRegionIsNotFoundAndTheFieldIsNamed) {
  const std::shared_ptr<Session> other = *state_.sessions.Open({.remote = false, .uid = 1}, "other");
  const absl::StatusOr<uint64_t> region = RegisterHost(*state_.regions, other, {4096, true}, SealedMemory(4096));
  ASSERT_TRUE(region.ok());
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_a()->mutable_slice()->set_region_id(*region);
  const absl::Status foreign = Error(request);
  EXPECT_EQ(foreign.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(foreign.message().substr(0, 3), "a: ");
  request.mutable_dense()->mutable_a()->mutable_slice()->set_region_id(123456);
  EXPECT_EQ(Error(request), foreign);
}

TEST_F(JobBuilderTest, ATensorBringsItsLayoutAndItsWorker) {
  const absl::StatusOr<TensorRecord> tensor =
      CreateTensor(*state_.tensors, session_, {DType::kE4m3, {5, 16}, "", false});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  v1::RunRequest request = Dense();
  request.mutable_dense()->clear_b();
  request.mutable_dense()->mutable_b()->set_tensor_id(tensor->id);
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  const OperandDescriptor& b = job->descriptor.operand(OperandIndex::kB);
  EXPECT_EQ(b.region, tensor->id);
  EXPECT_EQ(b.dtype, DType::kE4m3);
  EXPECT_EQ(b.shape[0], 5);
  EXPECT_EQ(b.strides[0], 16);
  EXPECT_EQ(job->workers, MaskOf(tensor->worker));
  EXPECT_EQ(job->transport, Transport::kTensor);
  EXPECT_EQ(job->d_bytes, 30u);
}

TEST_F(JobBuilderTest, AnonymousCallsMayUseInlineOperandsOnly) {
  EXPECT_TRUE(builder_.Build(Dense(), *state_.sessions.anonymous()).ok());
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_a()->mutable_slice()->set_region_id(1);
  EXPECT_EQ(builder_.Build(request, *state_.sessions.anonymous()).status().code(), absl::StatusCode::kUnauthenticated);
}

TEST_F(JobBuilderTest, PaddingRowsOfInlineGroupedResultsAreZero) {
  {
    absl::StatusOr<ArenaLease> dirty = state_.arena->Allocate(4096);
    ASSERT_TRUE(dirty.ok());
    std::memset(dirty->data(), 0xff, 4096);
  }
  v1::RunRequest request;
  v1::MGroupedMasked& masked = *request.mutable_m_grouped_masked();
  SetInline(*masked.mutable_a(), v1::BF16, {2, 4, 8});
  SetInline(*masked.mutable_b(), v1::BF16, {2, 8, 8});
  SetInline(*masked.mutable_masked_m(), v1::I32, {2});
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->d_bytes, 2u * 4 * 8 * 2);
  for (std::byte byte : job->d()) EXPECT_EQ(byte, std::byte{0});
  EXPECT_EQ(job->descriptor.group_encoding, GroupEncoding::kMasked);
}

TEST_F(JobBuilderTest, ContiguousGroupsCarryTheirEncoding) {
  v1::RunRequest request;
  v1::MGroupedContiguous& grouped = *request.mutable_m_grouped_contiguous();
  SetInline(*grouped.mutable_a(), v1::BF16, {4, 8});
  SetInline(*grouped.mutable_b(), v1::BF16, {2, 16, 8});
  SetInline(*grouped.mutable_row_groups()->mutable_aligned_ends(), v1::I32, {2});
  grouped.mutable_row_groups()->set_alignment(64);
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->descriptor.group_encoding, GroupEncoding::kAlignedEnds);
  EXPECT_EQ(job->descriptor.group_alignment, 64u);
  EXPECT_EQ(job->descriptor.operand(OperandIndex::kD).shape[1], 16);
  grouped.mutable_row_groups()->set_alignment(-1);
  EXPECT_EQ(Error(request).message(), "row_groups.alignment: expected 0 to 2^32 - 1, got -1");
  grouped.clear_row_groups();
  EXPECT_EQ(Error(request).message(), "row_groups: expected one encoding, got none");
}

TEST_F(JobBuilderTest, AKGroupedResultNeedsItsShape) {
  v1::RunRequest request;
  v1::KGrouped& grouped = *request.mutable_k_grouped();
  SetInline(*grouped.mutable_a(), v1::BF16, {4 * 8});
  SetInline(*grouped.mutable_b(), v1::BF16, {4 * 8});
  SetInline(*grouped.mutable_ks(), v1::I32, {1});
  EXPECT_EQ(Error(request).message(), "d.shape: expected 3 dimensions, got none");
  SetRef(*grouped.mutable_d(), v1::DTYPE_UNSPECIFIED, {1, 4, 4});
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->d_bytes, 64u);
}

TEST_F(JobBuilderTest, QuantizeGivesElementsAndScaleFactors) {
  v1::RunRequest request;
  request.mutable_quantize()->set_block(v1::Quantize::BLOCK_128X128);
  SetInline(*request.mutable_quantize()->mutable_x(), v1::BF16, {130, 272});
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->d_bytes, 130u * 272);
  EXPECT_EQ(job->sf_bytes, 2u * 3 * 4);
  EXPECT_EQ(job->descriptor.operand(OperandIndex::kSfd).dtype, DType::kF32);
  request.mutable_quantize()->set_block(v1::Quantize::BLOCK_1X128);
  job = Build(request);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->sf_bytes, 130u * 3 * 4);
}

TEST_F(JobBuilderTest, ValuesThatFitNoByteStayIllegal) {
  v1::RunRequest request = Dense();
  request.set_priority(256);
  request.mutable_dense()->set_scaling(static_cast<v1::Scaling>(257));
  absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->descriptor.priority, 255);
  EXPECT_EQ(static_cast<int>(job->descriptor.scaling), 255);
}

TEST_F(JobBuilderTest, TensorsAreNamedByNameToo) {
  const auto tensor = CreateTensor(*state_.tensors, session_, {DType::kE4m3, {5, 16}, "w", true});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_b()->Clear();
  request.mutable_dense()->mutable_b()->set_tensor_name("w");
  const absl::StatusOr<BuiltJob> job = Build(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->descriptor.operand(OperandIndex::kB).region, tensor->id);
  EXPECT_EQ(job->descriptor.operand(OperandIndex::kB).shape[0], 5);
  EXPECT_EQ(job->transport, Transport::kTensor);
  request.mutable_dense()->mutable_b()->set_tensor_name("v");
  EXPECT_EQ(Error(request), absl::NotFoundError("b: tensor: no such tensor for this session"));
}

TEST_F(JobBuilderTest, TensorsOfTheManifestNeedNoSessionAndAreNoResults) {
  const auto daemon = std::make_shared<Session>(
      Session::Parameters{.id = 1u << 20, .identity = kDaemonIdentity, .client_name = "manifest"});
  ASSERT_TRUE(CreateTensor(*state_.tensors, daemon, {DType::kE4m3, {5, 16}, "w", true, true}).ok());
  v1::RunRequest request = Dense();
  request.mutable_dense()->mutable_b()->Clear();
  request.mutable_dense()->mutable_b()->set_tensor_name("w");
  EXPECT_TRUE(builder_.Build(request, *state_.sessions.anonymous()).ok());
  request = Dense();
  request.mutable_dense()->mutable_d()->set_tensor_name("w");
  EXPECT_EQ(Error(request).code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace gemmd
