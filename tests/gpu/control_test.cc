// SPDX-License-Identifier: Apache-2.0
// The control socket and the whole worker process in-process: RunWorkerProcess on a FakeDevice.
#include "gpu/control.h"

#include "gpu/worker_process.h"
#include "proto/job_ring.h"
#include "proto/message_socket.h"
#include "tests/gpu/fake_device.h"
#include "tests/gpu/job_samples.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

namespace gemmd {
namespace {

class ControlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    front_end_ = UniqueFd(ends[0]);
    process_ =
        std::thread([this, fd = ends[1]] { exit_status_ = RunWorkerProcess(device_, counters_, UniqueFd(fd), {}); });
    hello_ = Receive().reply;
  }
  void TearDown() override {
    front_end_.Reset();
    if (process_.joinable()) process_.join();
    alarm(0);  // RunWorkerProcess leaves one for a process that ends.
  }

  struct Received {
    ControlReply reply;
    UniqueFd fd;
  };
  Received Receive() {
    auto message = ReceiveMessage(front_end_.get());
    Received received;
    if (!message.ok() || message->bytes.size() != sizeof(ControlReply)) {
      ADD_FAILURE() << message.status();
      return received;
    }
    std::memcpy(&received.reply, message->bytes.data(), sizeof(ControlReply));
    received.fd = std::move(message->fd);
    return received;
  }
  Received Call(ControlRequest request, int fd = -1) {
    request.request_id = ++last_id_;
    EXPECT_TRUE(SendStruct(front_end_.get(), request, fd).ok());
    Received received = Receive();
    EXPECT_EQ(received.reply.request_id, last_id_);
    return received;
  }
  absl::StatusCode CodeOfCall(const ControlRequest& request, int fd = -1) {
    return static_cast<absl::StatusCode>(Call(request, fd).reply.code);
  }
  static ControlRequest MapRequest(uint64_t id, uint64_t byte_size) {
    ControlRequest request;
    request.type = ControlRequestType::kMapRegion;
    request.region_id = id;
    request.byte_size = byte_size;
    return request;
  }

  absl::Notification gate_;  // Of making kernels ready.
  testing::FakeDevice device_{testing::FakeScript{.prepare_gate = &gate_, .manual = true}};
  const WorkerCounters counters_ = *WorkerCounters::Create();
  UniqueFd front_end_;
  std::thread process_;
  int exit_status_ = -1;
  ControlReply hello_;
  uint64_t last_id_ = 0;
};

TEST_F(ControlTest, TheHelloDescribesTheDevice) {
  EXPECT_EQ(hello_.request_id, 0u);
  EXPECT_STREQ(hello_.name, "fake");
  EXPECT_EQ(hello_.memory_bytes, device_.traits().memory_bytes);
}

TEST_F(ControlTest, EndOfFileIsAnOrderlyExit) {
  front_end_.Reset();
  process_.join();
  EXPECT_EQ(exit_status_, 0);
}

TEST_F(ControlTest, AMessageOfTheWrongSizeIsAProtocolError) {
  const std::byte bytes[3] = {};
  ASSERT_TRUE(SendMessage(front_end_.get(), bytes).ok());
  process_.join();
  EXPECT_EQ(exit_status_, kExitProtocolError);
}

TEST_F(ControlTest, AnotherVersionIsAProtocolError) {
  ControlRequest request;
  request.version = kControlVersion + 1;
  ASSERT_TRUE(SendStruct(front_end_.get(), request).ok());
  process_.join();
  EXPECT_EQ(exit_status_, kExitProtocolError);
}

TEST_F(ControlTest, UnknownRequestsAreRefused) {
  ControlRequest request;
  request.type = static_cast<ControlRequestType>(99);
  EXPECT_EQ(CodeOfCall(request), absl::StatusCode::kUnimplemented);
}

TEST_F(ControlTest, RegionsAreMappedOnceAndClosedOnce) {
  const auto memory = CreateSealedMemory(4096);
  EXPECT_EQ(CodeOfCall(MapRequest(5, 4096)), absl::StatusCode::kInvalidArgument);  // No descriptor.
  EXPECT_EQ(CodeOfCall(MapRequest(5, 8192), memory->get()), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOfCall(MapRequest(5, 4096), memory->get()), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOfCall(MapRequest(5, 4096), memory->get()), absl::StatusCode::kAlreadyExists);
  ControlRequest bad_access = MapRequest(6, 4096);
  bad_access.access = static_cast<Access>(9);
  EXPECT_EQ(CodeOfCall(bad_access, memory->get()), absl::StatusCode::kInvalidArgument);
  ControlRequest close;
  close.type = ControlRequestType::kCloseRegion;
  close.region_id = 5;
  EXPECT_EQ(CodeOfCall(close), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOfCall(close), absl::StatusCode::kNotFound);
}

TEST_F(ControlTest, AllocateReturnsMemoryThatOutlivesTheWorker) {
  ControlRequest request;
  request.type = ControlRequestType::kAllocate;
  request.region_id = 9;
  request.byte_size = 4096;
  const Received received = Call(request);
  EXPECT_EQ(received.reply.code, 0u);
  EXPECT_TRUE(CheckSealedMemory(received.fd.get(), 4096).ok());
}

TEST_F(ControlTest, PrepareReportsKernels) {
  gate_.Notify();
  ControlRequest request;
  request.type = ControlRequestType::kPrepare;
  EXPECT_EQ(Call(request).reply.kernels_ready, 1u);
}

TEST_F(ControlTest, ARegionDoesNotWaitForKernels) {
  ControlRequest prepare;
  prepare.type = ControlRequestType::kPrepare;
  prepare.request_id = 1000;
  ASSERT_TRUE(SendStruct(front_end_.get(), prepare).ok());
  const auto memory = CreateSealedMemory(4096);
  EXPECT_EQ(CodeOfCall(MapRequest(5, 4096), memory->get()), absl::StatusCode::kOk);
  gate_.Notify();
  EXPECT_EQ(Receive().reply.request_id, 1000u);
}

TEST_F(ControlTest, ARingThatIsNoneIsRefused) {
  const auto memory = CreateSealedMemory(4096);
  EXPECT_EQ(CodeOfCall(ControlRequest{}, memory->get()), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CodeOfCall(ControlRequest{}), absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlTest, ClosingARegionUnderAJobIsAnsweredWhenTheJobIsDone) {
  auto ring = JobRing::Create(4);
  ASSERT_EQ(CodeOfCall(ControlRequest{}, ring->fd()), absl::StatusCode::kOk);
  const auto memory = CreateSealedMemory(4096);
  ASSERT_EQ(CodeOfCall(MapRequest(5, 4096), memory->get()), absl::StatusCode::kOk);
  JobDescriptor job;
  job.job_id = 1;
  job.op = Op::kCopy;
  job.operand(OperandIndex::kA) = testing::MakeOperand(5, 0, DType::kU8, {16});
  job.operand(OperandIndex::kD) = testing::MakeOperand(5, 64, DType::kU8, {16});
  SubmissionWriter writer(ring->submissions(), ring->descriptor_slots(), ring->slots());
  ASSERT_TRUE(writer.Write(job));
  device_.AwaitSubmitted(1);
  ControlRequest close;
  close.type = ControlRequestType::kCloseRegion;
  close.region_id = 5;
  close.request_id = 77;
  ASSERT_TRUE(SendStruct(front_end_.get(), close).ok());
  close.request_id = 78;  // Answered at once: the region is closed, though still held.
  ASSERT_TRUE(SendStruct(front_end_.get(), close).ok());
  EXPECT_EQ(Receive().reply.request_id, 78u);
  device_.FinishOne();
  EXPECT_EQ(Receive().reply.request_id, 77u);
}

}  // namespace
}  // namespace gemmd
