// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_service.h"

#include "tests/server/service_fixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <unistd.h>

namespace gemmd {
namespace {

std::string RandomBytes(size_t size) {
  std::mt19937 random(20240607);
  std::string bytes(size, '\0');
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
  return bytes;
}

class TensorServiceTest : public testing::Test {
 protected:
  std::unique_ptr<grpc::ClientContext> Context() {
    auto context = std::make_unique<grpc::ClientContext>();
    Authorize(*context, *session_);
    return context;
  }

  uint64_t Create(int64_t byte_size) {
    auto context = Context();
    v1::CreateTensorRequest request;
    request.set_dtype(v1::U8);
    request.add_shape(byte_size);
    v1::Tensor tensor;
    const grpc::Status status = stub_->Create(context.get(), request, &tensor);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(tensor.device(), "fake");
    return tensor.id();
  }

  struct Chunk {
    uint64_t tensor_id = 0;
    uint64_t offset = 0;
    std::string data;
  };
  grpc::Status Write(const std::vector<Chunk>& chunks, uint64_t* written) {
    auto context = Context();
    v1::WriteTensorResponse response;
    auto writer = stub_->Write(context.get(), &response);
    for (const Chunk& chunk : chunks) {
      v1::WriteTensorRequest request;
      request.set_tensor_id(chunk.tensor_id);
      request.set_offset(chunk.offset);
      request.set_data(chunk.data);
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    *written = response.bytes_written();
    return status;
  }

  grpc::Status Read(uint64_t id, uint64_t offset, uint64_t byte_size, std::string* bytes) {
    auto context = Context();
    v1::ReadTensorRequest request;
    request.set_tensor_id(id);
    request.set_offset(offset);
    request.set_byte_size(byte_size);
    auto reader = stub_->Read(context.get(), request);
    v1::ReadTensorResponse response;
    while (reader->Read(&response)) {
      EXPECT_EQ(response.offset(), offset + bytes->size());
      *bytes += response.data();
    }
    return reader->Finish();
  }

  grpc::Status WriteFromSlice(uint64_t tensor, uint64_t region, uint64_t offset, uint64_t byte_size) {
    auto context = Context();
    v1::WriteFromSliceRequest request;
    request.set_tensor_id(tensor);
    request.set_byte_size(byte_size);
    request.mutable_slice()->set_region_id(region);
    request.mutable_slice()->set_offset(offset);
    v1::WriteTensorResponse response;
    return stub_->WriteFromSlice(context.get(), request, &response);
  }

  FrontEndState state_{Quotas{.jobs_per_session = 4}, 8 << 20};
  DrainGate gate_;
  const TensorFiles files_;
  FileThread file_thread_;
  TensorService service_{{*state_.tensors, *state_.regions, *state_.arena, state_.pool, state_.authenticator, gate_,
                          files_, file_thread_}};
  TestServer server_{{&service_}};
  std::unique_ptr<v1::Tensors::Stub> stub_ = v1::Tensors::NewStub(server_.channel());
  std::shared_ptr<Session> session_ = *state_.sessions.Open(Identity{.remote = false, .uid = geteuid()}, "");
};

TEST_F(TensorServiceTest, WrittenBytesAreReadBack) {
  const std::string bytes = RandomBytes(3'000'000);
  const uint64_t id = Create(3'000'000);
  std::vector<Chunk> chunks;
  for (size_t at = 0; at < bytes.size(); at += 700'000)
    chunks.push_back({at == 0 ? id : 0, at, bytes.substr(at, 700'000)});
  uint64_t written = 0;
  const grpc::Status status = Write(chunks, &written);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(written, bytes.size());
  std::string read;
  ASSERT_TRUE(Read(id, 0, 0, &read).ok());
  EXPECT_TRUE(read == bytes);
  EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
  EXPECT_EQ(session_->jobs_in_flight(), 0u);
}

TEST_F(TensorServiceTest, PartsAreRead) {
  const uint64_t id = Create(1000);
  uint64_t written = 0;
  ASSERT_TRUE(Write({{id, 10, "hello"}}, &written).ok());
  std::string read;
  ASSERT_TRUE(Read(id, 9, 7, &read).ok());
  EXPECT_EQ(read, std::string("\0hello\0", 7));
}

TEST_F(TensorServiceTest, TransfersAreRefusedOnceTheGateIsClosed) {
  const uint64_t id = Create(64);
  gate_.Close();
  uint64_t written = 0;
  EXPECT_EQ(Write({{id, 0, "late"}}, &written).error_code(), grpc::StatusCode::UNAVAILABLE);
  std::string read;
  EXPECT_EQ(Read(id, 0, 0, &read).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(gate_.passes(), 0u);
}

TEST_F(TensorServiceTest, OverlappingChunksAreAppliedInOrder) {
  const uint64_t id = Create(8);
  std::vector<Chunk> chunks;
  for (char c = 'a'; c <= 'z'; ++c) chunks.push_back({id, 0, std::string(8, c)});
  uint64_t written = 0;
  ASSERT_TRUE(Write(chunks, &written).ok());
  EXPECT_EQ(written, 26u * 8);
  std::string read;
  ASSERT_TRUE(Read(id, 0, 0, &read).ok());
  EXPECT_EQ(read, "zzzzzzzz");
}

TEST_F(TensorServiceTest, FirstFailureSaysHowMuchWasWritten) {
  const uint64_t id = Create(8);
  uint64_t written = 0;
  const grpc::Status status = Write({{id, 0, "1234"}, {0, 4, ""}, {0, 6, "567"}, {0, 0, "x"}}, &written);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_NE(status.error_message().find("4 bytes were written"), std::string::npos) << status.error_message();
}

TEST_F(TensorServiceTest, BadChunksAreRefused) {
  const uint64_t id = Create(8);
  const uint64_t other = Create(8);
  uint64_t written = 0;
  EXPECT_EQ(Write({{987654, 0, "x"}}, &written).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Write({{0, 0, "x"}}, &written).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Write({{id, ~uint64_t{0}, "x"}}, &written).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(Write({{id, 0, "x"}, {other, 0, "x"}}, &written).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Write({}, &written).ok());
}

TEST_F(TensorServiceTest, FailedJobEndsTheWrite) {
  const uint64_t id = Create(8);
  state_.pool.FailNextJob(absl::UnavailableError("worker died"));
  uint64_t written = 0;
  EXPECT_EQ(Write({{id, 0, "12345678"}}, &written).error_code(), grpc::StatusCode::UNAVAILABLE);
  state_.pool.FailNextSubmit(absl::UnavailableError("no worker"));
  EXPECT_EQ(Write({{id, 0, "12345678"}}, &written).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(session_->jobs_in_flight(), 0u);
  EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
}

TEST_F(TensorServiceTest, FullArenaIsResourceExhausted) {
  const uint64_t id = Create(8);
  const auto everything = state_.arena->Allocate(state_.arena->byte_size());
  ASSERT_TRUE(everything.ok());
  uint64_t written = 0;
  EXPECT_EQ(Write({{id, 0, "1"}}, &written).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  std::string read;
  EXPECT_EQ(Read(id, 0, 0, &read).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TensorServiceTest, JobQuotaIsResourceExhausted) {
  const uint64_t id = Create(8);
  std::vector<JobTicket> tickets;
  for (int i = 0; i < 4; ++i) tickets.push_back(*session_->AdmitJob());
  uint64_t written = 0;
  EXPECT_EQ(Write({{id, 0, "1"}}, &written).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TensorServiceTest, ReadOutsideTheTensorIsOutOfRange) {
  const uint64_t id = Create(8);
  std::string read;
  EXPECT_EQ(Read(id, 9, 0, &read).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(Read(id, 1, 8, &read).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(Read(id, 1, ~uint64_t{0}, &read).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_TRUE(Read(id, 8, 0, &read).ok());
  EXPECT_TRUE(read.empty());
}

TEST_F(TensorServiceTest, SliceIsCopied) {
  const UniqueFd memory = SealedMemory(4096);
  const auto mapping = SharedMapping::Map(memory.get(), 4096, Access::kReadWrite);
  std::memcpy(mapping->data() + 100, "slice", 5);
  const auto region = RegisterHost(*state_.regions, session_, {4096, false}, memory.Duplicate());
  ASSERT_TRUE(region.ok());
  const uint64_t id = Create(8);
  ASSERT_TRUE(WriteFromSlice(id, *region, 100, 5).ok());
  std::string read;
  ASSERT_TRUE(Read(id, 0, 5, &read).ok());
  EXPECT_EQ(read, "slice");
}

TEST_F(TensorServiceTest, BadSlicesAreRefused) {
  const auto region = RegisterHost(*state_.regions, session_, {4096, false}, SealedMemory(4096));
  auto stranger = *state_.sessions.Open(session_->identity(), "");
  const auto foreign = RegisterHost(*state_.regions, stranger, {4096, false}, SealedMemory(4096));
  const uint64_t id = Create(8192);
  EXPECT_EQ(WriteFromSlice(id, 987654, 0, 1).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(WriteFromSlice(id, *foreign, 0, 1).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(WriteFromSlice(987654, *region, 0, 1).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(WriteFromSlice(id, *region, 4096, 1).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(WriteFromSlice(id, *region, 1, ~uint64_t{0}).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(WriteFromSlice(Create(8), *region, 0, 9).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_TRUE(WriteFromSlice(id, *region, 4096, 0).ok());
}

TEST_F(TensorServiceTest, DeadlineEndsACallThatWaits) {
  const uint64_t id = Create(8);
  state_.pool.Pause();
  auto context = Context();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  v1::ReadTensorRequest request;
  request.set_tensor_id(id);
  auto reader = stub_->Read(context.get(), request);
  v1::ReadTensorResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  state_.pool.Resume();
  WaitUntil([&] { return session_->jobs_in_flight() == 0 && state_.arena->bytes_in_use() == 0; });
}

TEST_F(TensorServiceTest, CancelledWriteLeavesNothing) {
  const uint64_t id = Create(8);
  state_.pool.Pause();
  auto context = Context();
  v1::WriteTensorResponse response;
  auto writer = stub_->Write(context.get(), &response);
  v1::WriteTensorRequest request;
  request.set_tensor_id(id);
  request.set_data("12345678");
  ASSERT_TRUE(writer->Write(request));
  WaitUntil([&] { return session_->jobs_in_flight() == 1; });
  context->TryCancel();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  state_.pool.Resume();
  WaitUntil([&] { return session_->jobs_in_flight() == 0 && state_.arena->bytes_in_use() == 0; });
}

TEST_F(TensorServiceTest, SlowReaderHoldsLittle) {
  const uint64_t id = Create(64 << 20);
  auto context = Context();
  v1::ReadTensorRequest request;
  request.set_tensor_id(id);
  auto reader = stub_->Read(context.get(), request);
  v1::ReadTensorResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_LE(state_.arena->bytes_in_use(), kReadChunkBytes);
  context->TryCancel();
  while (reader->Read(&response)) continue;
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  WaitUntil([&] { return state_.arena->bytes_in_use() == 0; });
}

TEST_F(TensorServiceTest, DeletedTensorIsGone) {
  const uint64_t id = Create(8);
  for (const auto code : {grpc::StatusCode::OK, grpc::StatusCode::NOT_FOUND}) {
    auto context = Context();
    v1::DeleteTensorRequest request;
    request.set_id(id);
    v1::DeleteTensorResponse response;
    EXPECT_EQ(stub_->Delete(context.get(), request, &response).error_code(), code);
  }
  state_.pool.Drain();
  EXPECT_EQ(state_.tensors->Counts().bytes, 0u);
}

TEST_F(TensorServiceTest, GetNeedsAKeyAndListShowsBytesWritten) {
  const uint64_t id = Create(8);
  uint64_t written = 0;
  ASSERT_TRUE(Write({{id, 0, "1234"}}, &written).ok());
  auto context = Context();
  v1::ListTensorsResponse list;
  ASSERT_TRUE(stub_->List(context.get(), v1::ListTensorsRequest(), &list).ok());
  ASSERT_EQ(list.tensors_size(), 1);
  EXPECT_EQ(list.tensors(0).bytes_written(), 4u);
  auto other = Context();
  v1::Tensor tensor;
  EXPECT_EQ(stub_->Get(other.get(), v1::GetTensorRequest(), &tensor).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TensorServiceTest, UnknownDTypeNumbersDoNotWrapAround) {
  auto context = Context();
  v1::CreateTensorRequest request;
  request.set_dtype(static_cast<v1::DType>(256 + v1::U8));
  request.add_shape(8);
  v1::Tensor tensor;
  EXPECT_EQ(stub_->Create(context.get(), request, &tensor).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TensorServiceTest, ContentIsThereWithTheAnswer) {
  auto context = Context();
  v1::CreateTensorRequest request;
  request.mutable_data()->set_inline_("content");
  request.mutable_data()->set_dtype(v1::U8);
  request.mutable_data()->add_shape(7);
  v1::Tensor tensor;
  const grpc::Status status = stub_->Create(context.get(), request, &tensor);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(tensor.bytes_written(), 7u);
  std::string read;
  ASSERT_TRUE(Read(tensor.id(), 0, 0, &read).ok());
  EXPECT_EQ(read, "content");
}

// Which of the two depends on whether gRPC tells of the end before the last job is done; TensorCreationTest cancels in
// time.
TEST_F(TensorServiceTest, ContentOfACallThatEndedIsGoneOrWhole) {
  auto context = Context();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::CreateTensorRequest request;
  request.set_name("w");
  request.set_shared(true);
  request.mutable_data()->set_inline_("content");
  request.mutable_data()->set_dtype(v1::U8);
  request.mutable_data()->add_shape(7);
  v1::Tensor tensor;
  state_.pool.Pause();
  EXPECT_EQ(stub_->Create(context.get(), request, &tensor).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  state_.pool.Resume();
  WaitUntil([this] { return gate_.passes() == 0; });
  EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
  const auto left = state_.tensors->GetByName(*session_, "w");
  if (left.ok()) {
    EXPECT_EQ(left->bytes_written, 7u);
  } else {
    EXPECT_TRUE(absl::IsNotFound(left.status())) << left.status();
    WaitUntil([this] { return state_.tensors->Counts().bytes == 0; });
  }
}

TEST_F(TensorServiceTest, WithoutContentNothingCanBeChanged) {
  v1::CreateTensorRequest request;
  request.set_dtype(v1::E4M3);
  request.add_shape(16);
  request.add_shape(16);
  v1::Tensor tensor;
  request.set_transpose(true);
  auto first = Context();
  EXPECT_EQ(stub_->Create(first.get(), request, &tensor).error_message(),
            "transpose: expected content to transpose, got none");
  request.clear_transpose();
  request.set_quantize(v1::Quantize::BLOCK_1X128);
  auto second = Context();
  EXPECT_EQ(stub_->Create(second.get(), request, &tensor).error_message(),
            "quantize: expected content to quantize, got none");
}

TEST_F(TensorServiceTest, CallsWithoutSessionAreUnauthenticated) {
  grpc::ClientContext create;
  v1::Tensor tensor;
  EXPECT_EQ(stub_->Create(&create, v1::CreateTensorRequest(), &tensor).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext write;
  v1::WriteTensorResponse written;
  EXPECT_EQ(stub_->Write(&write, &written)->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  grpc::ClientContext read;
  EXPECT_EQ(stub_->Read(&read, v1::ReadTensorRequest())->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace gemmd
