// SPDX-License-Identifier: Apache-2.0
#include "server/gemm_service.h"

#include "proto/job_ring.h"
#include "server/drain_gate.h"
#include "tests/server/service_fixture.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

// A dense BF16 product of inline operands with a result of 8 bytes; the fake pool does not compute it.
v1::RunRequest Product(uint64_t id = 0) {
  v1::RunRequest request;
  request.set_request_id(id);
  v1::Dense& dense = *request.mutable_dense();
  dense.set_scaling(v1::SCALING_NONE);
  for (v1::TensorRef* operand : {dense.mutable_a(), dense.mutable_b()}) {
    operand->set_dtype(v1::BF16);
    operand->add_shape(2);
    operand->add_shape(8);
    operand->set_inline_(std::string(32, '\0'));
  }
  return request;
}

class GemmServiceTest : public ::testing::Test {
 protected:
  GemmServiceTest() : GemmServiceTest(Quotas{}) {}
  explicit GemmServiceTest(const Quotas& quotas) : state_(quotas) {
    state_.pool.SetJobHandler([this](const JobDescriptor& job) {
      ++executed_;
      JobCompletion completion;
      completion.job_id = job.job_id;
      completion.batch_jobs = 1;
      completion.launched_ns = MonotonicNanos();
      completion.device_ns = 22;
      completion.flops = 33;
      return completion;
    });
    server_ = std::make_unique<TestServer>(std::vector<grpc::Service*>{&service_});
    stub_ = v1::Gemm::NewStub(server_->channel());
  }

  grpc::Status Run(const v1::RunRequest& request, v1::RunResponse* response) {
    grpc::ClientContext context;
    return stub_->Run(&context, request, response);
  }

  std::atomic<int> executed_{0};  // Jobs that reached the device.
  FrontEndState state_;
  DrainGate gate_;
  Metrics metrics_{"test"};
  RequestLog requests_{16, [this] { metrics_.CountMalformedTraceparent(); }};
  JobBuilder builder_{Memory{*state_.regions, *state_.tensors, *state_.arena}, 1 << 20};
  GemmService service_{GemmParts{state_.pool, state_.authenticator, builder_, gate_, metrics_, requests_},
                       GemmServiceLimits{.max_stream_requests = 8}};
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::Gemm::Stub> stub_;
};

TEST_F(GemmServiceTest, RunAnswersWithTheResultAndTheTimes) {
  v1::RunResponse response;
  const grpc::Status status = Run(Product(7), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.request_id(), 7u);
  EXPECT_EQ(response.d().size(), 8u);
  EXPECT_EQ(response.batch_jobs(), 1u);
  EXPECT_GT(response.times().decode_ns(), 0u);
  EXPECT_GT(response.times().queue_ns(), 0u);
  EXPECT_EQ(response.times().device_ns(), 22u);
}

TEST_F(GemmServiceTest, TheBytesOfOperandsAndResultsAreCounted) {
  v1::RunResponse response;
  ASSERT_TRUE(Run(Product(), &response).ok());
  ASSERT_TRUE(Run(Product(), &response).ok());
  const std::string page = prometheus::TextSerializer().Serialize(metrics_.registry()->Collect());
  for (const char* series :
       {"{direction=\"in\",transport=\"inline\"} 128\n", "{direction=\"out\",transport=\"inline\"} 16\n",
        "{direction=\"in\",transport=\"host\"} 0\n"}) {
    EXPECT_NE(page.find(std::string("gemmd_io_bytes_total") + series), std::string::npos) << series << page;
  }
}

TEST_F(GemmServiceTest, AResultAfterTheDeadlineIsCounted) {
  // Again if the deadline passed before the request came, as it may on a busy machine.
  WaitUntil([this] {
    state_.pool.Pause();
    v1::RunResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
    EXPECT_EQ(stub_->Run(&context, Product(), &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    state_.pool.Resume();
    // The server was told to cancel, or sees a result that is late.
    const std::string page = prometheus::TextSerializer().Serialize(metrics_.registry()->Collect());
    return page.find("gemmd_deadline_missed_total{where=\"queue\"} 0\n") == std::string::npos ||
           page.find("gemmd_deadline_missed_total{where=\"device\"} 0\n") == std::string::npos;
  });
}

TEST_F(GemmServiceTest, ARequestIsRememberedWithItsTrace) {
  grpc::ClientContext context;
  context.AddMetadata(kTraceparentMetadata, FormatTraceparent({{1, 2}, 3, true}));
  v1::RunResponse response;
  ASSERT_TRUE(stub_->Run(&context, Product(9), &response).ok());
  const std::vector<TracedRequest> requests = requests_.Latest();
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0].context, (TraceContext{{1, 2}, 3, true}));
  EXPECT_NE(requests[0].span_id, 0u);
  EXPECT_EQ(requests[0].request_id, 9u);
  EXPECT_EQ(requests[0].op, Op::kDense);
  EXPECT_EQ(requests[0].shape.n, 2);
  EXPECT_EQ(requests[0].shape.k, 8);
  EXPECT_EQ(requests[0].finished_ns - requests[0].launched_ns, 22u);
  EXPECT_GE(requests[0].answered_ns, requests[0].completed_ns);
}

TEST_F(GemmServiceTest, NothingIsHeldAfterTheAnswer) {
  v1::RunResponse response;
  ASSERT_TRUE(Run(Product(), &response).ok());
  EXPECT_EQ(state_.arena->bytes_in_use(), 0u);
  WaitUntil([this] { return gate_.passes() == 0; });
}

TEST_F(GemmServiceTest, AnIllegalJobIsInvalidArgument) {
  state_.pool.SetJobHandler([](const JobDescriptor& job) {
    JobCompletion completion;
    completion.job_id = job.job_id;
    completion.reason.field = JobField::kB;
    completion.reason.rule = Rule::kMissing;
    completion.code = CodeOf(Rule::kMissing);
    return completion;
  });
  v1::RunResponse response;
  const grpc::Status status = Run(Product(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message().substr(0, 1), "b");
}

TEST_F(GemmServiceTest, TheDeathOfTheWorkerIsUnavailable) {
  state_.pool.FailNextJob(absl::UnavailableError("worker died under the request"));
  v1::RunResponse response;
  EXPECT_EQ(Run(Product(), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Run(Product(), &response).ok());
}

TEST_F(GemmServiceTest, AFullQueueComesWithARetryHint) {
  state_.pool.FailNextSubmit(absl::ResourceExhaustedError("full"));
  grpc::ClientContext context;
  v1::RunResponse response;
  EXPECT_EQ(stub_->Run(&context, Product(), &response).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count(kRetryPushbackMetadata), 1u);
}

TEST_F(GemmServiceTest, WrongCredentialsAreRefused) {
  grpc::ClientContext context;
  Authorize(context, 99, std::string(32, '0'));
  v1::RunResponse response;
  EXPECT_EQ(stub_->Run(&context, Product(), &response).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(GemmServiceTest, ADrainRefusesNewWork) {
  gate_.Close();
  v1::RunResponse response;
  EXPECT_EQ(Run(Product(), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GemmServiceTest, ASessionThatADrainEndedIsToldToGoElsewhere) {
  gate_.Close();
  grpc::ClientContext context;
  Authorize(context, 99, std::string(32, '0'));
  v1::RunResponse response;
  EXPECT_EQ(stub_->Run(&context, Product(), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext stream_context;
  Authorize(stream_context, 99, std::string(32, '0'));
  EXPECT_EQ(stub_->Stream(&stream_context)->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GemmServiceTest, TheDeadlineReachesTheWorker) {
  std::atomic<uint64_t> deadline_ns{0};
  state_.pool.SetJobHandler([&deadline_ns](const JobDescriptor& job) {
    deadline_ns = job.deadline_ns;
    JobCompletion completion;
    completion.job_id = job.job_id;
    return completion;
  });
  v1::RunResponse response;
  ASSERT_TRUE(Run(Product(), &response).ok());
  EXPECT_EQ(deadline_ns, 0u);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(100));
  ASSERT_TRUE(stub_->Run(&context, Product(), &response).ok());
  EXPECT_GT(deadline_ns, 0u);
}

TEST_F(GemmServiceTest, ACancelledCallIsCancelledInTheWorkerAndFreesItsMemory) {
  state_.pool.Pause();
  grpc::ClientContext context;
  grpc::Status status;
  std::thread caller([&] {
    v1::RunResponse response;
    status = stub_->Run(&context, Product(), &response);
  });
  WaitUntil([this] { return state_.pool.jobs_queued() == 1; });
  context.TryCancel();
  caller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  WaitUntil([this] { return state_.pool.jobs_to_cancel() == 1; });
  EXPECT_GT(state_.arena->bytes_in_use(), 0u) << "the worker may still be writing there";
  state_.pool.Resume();
  WaitUntil([this] { return state_.arena->bytes_in_use() == 0 && gate_.passes() == 0; });
  EXPECT_EQ(executed_, 0);
}

TEST_F(GemmServiceTest, AStreamAnswersEveryRequestById) {
  grpc::ClientContext context;
  auto stream = stub_->Stream(&context);
  for (uint64_t id = 1; id <= 50; ++id) {
    ASSERT_TRUE(stream->Write(Product(id)));
    v1::RunResponse response;
    if (id % 5 != 0) continue;
    for (int i = 0; i < 5; ++i) {
      ASSERT_TRUE(stream->Read(&response));
      EXPECT_EQ(response.status().code(), 0);
      EXPECT_EQ(response.d().size(), 8u);
    }
  }
  stream->WritesDone();
  v1::RunResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GemmServiceTest, AHalfClosedStreamEndsWhenEverythingIsAnswered) {
  state_.pool.Pause();
  grpc::ClientContext context;
  auto stream = stub_->Stream(&context);
  for (uint64_t id = 1; id <= 5; ++id) ASSERT_TRUE(stream->Write(Product(id)));
  stream->WritesDone();
  WaitUntil([this] { return state_.pool.jobs_queued() == 5; });
  state_.pool.Resume();
  std::set<uint64_t> ids;
  v1::RunResponse response;
  while (stream->Read(&response)) ids.insert(response.request_id());
  EXPECT_EQ(ids, (std::set<uint64_t>{1, 2, 3, 4, 5}));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GemmServiceTest, AFailedRequestDoesNotEndTheStream) {
  grpc::ClientContext context;
  auto stream = stub_->Stream(&context);
  v1::RunRequest bad;
  bad.set_request_id(1);
  ASSERT_TRUE(stream->Write(bad));
  v1::RunResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), grpc::StatusCode::INVALID_ARGUMENT);
  ASSERT_TRUE(stream->Write(Product(2)));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 2u);
  EXPECT_EQ(response.status().code(), 0);
}

TEST_F(GemmServiceTest, ARequestIdInFlightMayNotBeUsedAgain) {
  state_.pool.Pause();
  grpc::ClientContext context;
  auto stream = stub_->Stream(&context);
  ASSERT_TRUE(stream->Write(Product(1)));
  ASSERT_TRUE(stream->Write(Product(1)));
  v1::RunResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), grpc::StatusCode::INVALID_ARGUMENT);
  state_.pool.Resume();
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), 0);
  ASSERT_TRUE(stream->Write(Product(1)));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), 0);
}

TEST_F(GemmServiceTest, AStreamIsNotReadBeyondItsBound) {
  state_.pool.Pause();
  grpc::ClientContext context;
  auto stream = stub_->Stream(&context);
  constexpr uint64_t kRequests = 30;
  for (uint64_t id = 1; id <= kRequests; ++id) ASSERT_TRUE(stream->Write(Product(id)));
  WaitUntil([this] { return state_.pool.jobs_queued() == 8; });
  EXPECT_EQ(gate_.passes(), 8u);
  state_.pool.Resume();
  v1::RunResponse response;
  for (uint64_t i = 0; i < kRequests; ++i) ASSERT_TRUE(stream->Read(&response));
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GemmServiceTest, ACancelledStreamCancelsItsJobs) {
  state_.pool.Pause();
  {
    grpc::ClientContext context;
    auto stream = stub_->Stream(&context);
    for (uint64_t id = 1; id <= 8; ++id) ASSERT_TRUE(stream->Write(Product(id)));
    WaitUntil([this] { return state_.pool.jobs_queued() == 8; });
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  WaitUntil([this] { return state_.pool.jobs_to_cancel() == 8; });
  state_.pool.Resume();
  WaitUntil([this] { return state_.arena->bytes_in_use() == 0 && gate_.passes() == 0; });
  EXPECT_EQ(executed_, 0);
}

TEST_F(GemmServiceTest, AStreamWithWrongCredentialsEndsAtOnce) {
  grpc::ClientContext context;
  Authorize(context, 99, std::string(32, '0'));
  auto stream = stub_->Stream(&context);
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

class OneJobTest : public GemmServiceTest {
 protected:
  OneJobTest() : GemmServiceTest(Quotas{.anonymous_jobs = 1}) {}
};

TEST_F(OneJobTest, JobsBeyondTheQuotaAreRefusedAtOnce) {
  state_.pool.Pause();
  grpc::ClientContext context;
  auto stream = stub_->Stream(&context);
  ASSERT_TRUE(stream->Write(Product(1)));
  ASSERT_TRUE(stream->Write(Product(2)));
  v1::RunResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.request_id(), 2u);
  EXPECT_EQ(response.status().code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  state_.pool.Resume();
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status().code(), 0);
}

}  // namespace
}  // namespace gemmd
