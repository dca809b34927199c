// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_creation.h"

#include "tests/server/service_fixture.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

namespace gemmd {
namespace {

using ::testing::ElementsAre;

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 11);
  return bytes;
}

class TensorCreationTest : public testing::Test {
 protected:
  TensorCreationTest() {
    auto files = TensorFiles::Open(std::vector<std::string>{folder_.path()});
    EXPECT_TRUE(files.ok()) << files.status();
    if (files.ok()) files_ = *std::move(files);
    regions_before_ = state_.pool.region_count();
  }

  // A file with the one tensor "w" of U8.
  void WriteFile(const std::string& name, const std::string& data) {
    const std::string header =
        absl::StrCat(R"({"w":{"dtype":"U8","shape":[)", data.size(), R"(],"data_offsets":[0,)", data.size(), "]}}");
    std::string length;
    for (size_t i = 0; i < 8; ++i) length.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
    std::ofstream(folder_.path() + "/" + name, std::ios::binary) << length << header << data;
  }

  absl::StatusOr<TensorRecord> Create(const v1::CreateTensorRequest& request) {
    absl::Notification called;
    absl::StatusOr<TensorRecord> result;
    TensorCreation::Start(makers_, {session_}, request, [&](absl::StatusOr<TensorRecord> record) {
      result = std::move(record);
      called.Notify();
    });
    called.WaitForNotification();
    return result;
  }

  static v1::CreateTensorRequest FromFile(const std::string& path) {
    v1::CreateTensorRequest request;
    request.mutable_file()->set_path(path);
    return request;
  }

  static v1::CreateTensorRequest FromInline(const std::string& bytes) {
    v1::CreateTensorRequest request;
    request.mutable_data()->set_inline_(bytes);
    request.mutable_data()->set_dtype(v1::U8);
    request.mutable_data()->add_shape(static_cast<int64_t>(bytes.size()));
    return request;
  }

  std::string Content(const TensorRecord& record) {
    state_.pool.Drain();
    const std::byte* bytes = state_.pool.Bytes(record.id, 0, record.byte_size);
    return bytes == nullptr ? "" : std::string(reinterpret_cast<const char*>(bytes), record.byte_size);
  }

  void ExpectNothingLeft() {
    state_.pool.Drain();
    EXPECT_EQ(state_.pool.region_count(), regions_before_);
    EXPECT_EQ(state_.tensors->Counts().bytes, 0u);
    EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
  }

  const TemporaryFolder folder_;
  FrontEndState state_{Quotas{.jobs_per_session = 1}, 16 << 20};
  TensorFiles files_;
  FileThread file_thread_;
  const TensorMakers makers_{*state_.tensors, *state_.regions, *state_.arena, state_.pool, files_, file_thread_};
  std::shared_ptr<Session> session_ = *state_.sessions.Open(Identity{.remote = false, .uid = 1001}, "");
  size_t regions_before_ = 0;
};

TEST_F(TensorCreationTest, FileOfSeveralChunksIsThereWhole) {
  const std::string bytes = Bytes(9'000'001);
  WriteFile("a", bytes);
  const auto record = Create(FromFile("a"));
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->dtype, DType::kU8);
  EXPECT_THAT(record->shape, ElementsAre(9'000'001));
  EXPECT_EQ(record->bytes_written, bytes.size());
  EXPECT_TRUE(Content(*record) == bytes);
  EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
}

TEST_F(TensorCreationTest, SliceTensorAndInlineAreContentToo) {
  const std::string bytes = Bytes(5000);
  const auto first = Create(FromInline(bytes));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Content(*first), bytes);
  v1::CreateTensorRequest copy;
  copy.mutable_data()->set_tensor_id(first->id);
  const auto second = Create(copy);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(Content(*second), bytes);
  const UniqueFd memory = SealedMemory(8192);
  ASSERT_EQ(pwrite(memory.get(), bytes.data(), bytes.size(), 100), 5000);
  const auto region = RegisterHost(*state_.regions, session_, {8192, false}, memory.Duplicate());
  ASSERT_TRUE(region.ok()) << region.status();
  v1::CreateTensorRequest slice;
  slice.mutable_data()->mutable_slice()->set_region_id(*region);
  slice.mutable_data()->mutable_slice()->set_offset(100);
  slice.mutable_data()->set_dtype(v1::F32);
  slice.mutable_data()->add_shape(10);
  slice.mutable_data()->add_shape(125);
  const auto third = Create(slice);
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_THAT(third->shape, ElementsAre(10, 125));
  EXPECT_EQ(Content(*third), bytes);
  slice.mutable_data()->mutable_slice()->set_offset(8192 - 4999);
  EXPECT_EQ(Create(slice).status(), absl::OutOfRangeError("data.slice: expected bytes inside [0, 8192), got 5000 bytes "
                                                          "at offset 3193"));
}

TEST_F(TensorCreationTest, QuantizedContentComesWithItsScaleFactors) {
  std::vector<Op> ops;
  state_.pool.SetJobHandler([&](const JobDescriptor& job) {
    ops.push_back(job.op);
    return JobCompletion();
  });
  v1::CreateTensorRequest request;
  request.set_name("w");
  request.set_shared(true);
  request.set_transpose(true);
  request.set_quantize(v1::Quantize::BLOCK_128X128);
  request.mutable_data()->set_inline_(std::string(160 * 300 * 2, 'x'));
  request.mutable_data()->set_dtype(v1::BF16);
  request.mutable_data()->add_shape(160);
  request.mutable_data()->add_shape(300);
  const auto record = Create(request);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_THAT(record->shape, ElementsAre(300, 160));
  EXPECT_THAT(ops, ElementsAre(Op::kTranspose, Op::kQuantize));
  const auto scales = state_.tensors->GetByName(*session_, "w.sf");
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_EQ(scales->id, record->sf_id);
  EXPECT_THAT(scales->shape, ElementsAre(3, 2));
}

TEST_F(TensorCreationTest, NobodySeesATensorThatIsHalfThere) {
  state_.pool.SetJobHandler([&](const JobDescriptor&) {
    EXPECT_TRUE(absl::IsNotFound(state_.tensors->GetByName(*session_, "w").status()));
    EXPECT_TRUE(state_.tensors->List(*session_).empty());
    return JobCompletion();
  });
  v1::CreateTensorRequest request = FromInline(Bytes(4));
  request.set_name("w");
  request.set_shared(true);
  request.set_transpose(true);
  request.mutable_data()->set_dtype(v1::F32);
  request.mutable_data()->clear_shape();
  request.mutable_data()->add_shape(1);
  request.mutable_data()->add_shape(1);
  const auto record = Create(request);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_TRUE(state_.tensors->GetByName(*session_, "w").ok());
}

TEST_F(TensorCreationTest, AFailureLeavesNothing) {
  WriteFile("a", Bytes(9'000'001));
  state_.pool.FailNextJob(absl::UnavailableError("the worker died"));
  EXPECT_EQ(Create(FromFile("a")).status(), absl::UnavailableError("content: the worker died"));
  ExpectNothingLeft();
  state_.pool.FailNextControl(absl::ResourceExhaustedError("no memory"));
  EXPECT_EQ(Create(FromFile("a")).status(), absl::ResourceExhaustedError("no memory"));
  ExpectNothingLeft();
  state_.pool.FailNextSubmit(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(Create(FromFile("a")).status(), absl::ResourceExhaustedError("content: full"));
  ExpectNothingLeft();
}

TEST_F(TensorCreationTest, ACancelledCreationLeavesNothing) {
  const std::string bytes = Bytes(100);
  absl::Notification called;
  absl::Status status;
  state_.pool.Pause();
  const auto creation = TensorCreation::Start(makers_, {session_}, FromInline(bytes), [&](const auto& record) {
    status = record.status();
    called.Notify();
  });
  creation->Cancel();
  state_.pool.Resume();
  called.WaitForNotification();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  ExpectNothingLeft();
}

TEST_F(TensorCreationTest, BadContentIsRefusedWithItsField) {
  v1::CreateTensorRequest request = FromInline("abcd");
  request.mutable_data()->set_shape(0, 5);
  EXPECT_EQ(Create(request).status(), absl::InvalidArgumentError("data.inline: expected 5 bytes, got 4"));
  request.mutable_data()->set_shape(0, -5);
  EXPECT_EQ(Create(request).status(),
            absl::InvalidArgumentError("data: shape: expected extents of at least 0, got -5"));
  request = FromInline("abcd");
  request.mutable_data()->set_dtype(static_cast<v1::DType>(257));
  EXPECT_EQ(Create(request).status(), absl::InvalidArgumentError("data.dtype: expected an element type, got 257"));
  request = FromInline("abcd");
  request.mutable_data()->add_strides(2);
  EXPECT_EQ(Create(request).status(),
            absl::InvalidArgumentError("data.strides: expected none (contiguous content), got some"));
  request = FromInline("abcd");
  request.set_quantize(static_cast<v1::Quantize::Block>(300));
  EXPECT_EQ(Create(request).status(), absl::InvalidArgumentError("quantize: expected a known block, got 300"));
  request.clear_data();
  request.clear_quantize();
  request.mutable_data()->set_tensor_id(12345);
  EXPECT_TRUE(absl::IsNotFound(Create(request).status()));
  request.mutable_data()->mutable_slice()->set_region_id(12345);
  request.mutable_data()->set_dtype(v1::U8);
  request.mutable_data()->add_shape(1);
  EXPECT_TRUE(absl::IsNotFound(Create(request).status()));
  EXPECT_TRUE(absl::IsNotFound(Create(FromFile("../a")).status()));
  ExpectNothingLeft();
}

TEST_F(TensorCreationTest, BlocksThatAreLongerThanTheArenaAreRefused) {
  // 128 rows of a million floats are more than the 16 MiB of this arena.
  v1::CreateTensorRequest request;
  request.set_quantize(v1::Quantize::BLOCK_1X128);
  request.set_transpose(true);
  const auto whole = Create(FromInline(Bytes(12 << 20)));
  ASSERT_TRUE(whole.ok()) << whole.status();
  const UniqueFd memory = SealedMemory(64 << 20);
  const auto region = RegisterHost(*state_.regions, session_, {64 << 20, false}, memory.Duplicate());
  ASSERT_TRUE(region.ok()) << region.status();
  request.mutable_data()->mutable_slice()->set_region_id(*region);
  request.mutable_data()->set_dtype(v1::F32);
  request.mutable_data()->add_shape(16);
  request.mutable_data()->add_shape(1 << 20);
  EXPECT_TRUE(absl::IsResourceExhausted(Create(request).status()));
}

}  // namespace
}  // namespace gemmd
