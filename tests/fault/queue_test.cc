// SPDX-License-Identifier: Apache-2.0
// Requests that wait behind one that the device does not finish: the queue gets full, deadlines pass, clients lose
// patience. The device is a fake one that computes nothing and is held for as long as a test wants.
#include "gemmd/v1/gemm.grpc.pb.h"
#include "tests/fault/fault_fixture.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int kQueueLimit = 2;  // Of the worker.
constexpr int kUserLimit = 3;   // Of all sessions together.

class QueueTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Hold();
    const std::string worker = testing::WorkerWithFlags(
        directory_, "gemmd-worker-fake",
        {"--hold_file=" + HoldFile(), absl::StrCat("--queue_limit=", kQueueLimit), "--merging=false"});
    fixture_ = testing::StartAll({.flags = {"--worker_binary=" + worker, "--worker_hang_timeout=0s",
                                            absl::StrCat("--max_jobs_per_uid=", kUserLimit)}});
    inline_ = testing::MakeProblem(&client(), {.op = Op::kDense, .m = 1, .n = 16, .k = 16}, Transport::kInline);
  }
  void TearDown() override { Release(); }

  Client& client() { return *fixture_.client; }
  std::string address() const { return fixture_.daemon->address(); }
  const v1::RunRequest& request() const { return inline_->request(); }

  void Hold() { std::ofstream(HoldFile()).close(); }
  void Release() { std::filesystem::remove(HoldFile()); }

  // Waits until so many requests are unanswered, and how many of them wait for the device.
  void Await(int in_flight, int waiting) {
    EXPECT_TRUE(testing::WaitUntil(kPatience,
                                   [&] {
                                     return Metric("gemmd_inflight_requests") == in_flight &&
                                            Metric("gemmd_queue_requests{device=\"cpu\"}") == waiting;
                                   }))
        << Metric("gemmd_inflight_requests") << " in flight, " << Metric("gemmd_queue_requests{device=\"cpu\"}")
        << " wait";
  }

  double Metric(const std::string& series) const { return fixture_.daemon->Metric(series).value_or(-1); }
  double ExecutedJobs() const { return Metric("gemmd_batch_requests_sum{device=\"cpu\"}"); }

  // Waits until the device has a request. Only then others wait behind it: what waits together goes by turns.
  void AwaitHeld() {
    EXPECT_TRUE(testing::WaitUntil(kPatience, [this] { return std::filesystem::exists(HoldFile() + ".held"); }));
    Await(1, 0);
  }

  // Sends one that is to succeed, without waiting for it.
  void Send(absl::BlockingCounter* answered) {
    client().RunAsync(request(), {}, [answered](const absl::StatusOr<v1::RunResponse>& response) {
      EXPECT_TRUE(response.ok()) << response.status();
      answered->DecrementCount();
    });
  }

 private:
  std::string HoldFile() const { return directory_.path() + "/hold"; }

  const testing::TemporaryDirectory directory_;
  testing::Fixture fixture_;
  std::unique_ptr<Problem> inline_;
};

TEST_F(QueueTest, AFullQueueIsRefusedWithAHintAndServedLater) {
  absl::BlockingCounter answered(1 + kQueueLimit);
  Send(&answered);
  AwaitHeld();
  for (int i = 0; i < kQueueLimit; ++i) Send(&answered);
  Await(1 + kQueueLimit, kQueueLimit);

  const auto stub = v1::Gemm::NewStub(client().channel());
  grpc::ClientContext context;
  v1::RunResponse response;
  const grpc::Status refused = stub->Run(&context, request(), &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << refused.error_message();
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);

  Release();
  answered.Wait();
  const auto later = client().Run(request());
  EXPECT_TRUE(later.ok()) << later.status();
  EXPECT_EQ(ExecutedJobs(), 1 + kQueueLimit + 1);
}

TEST_F(QueueTest, JobsOfOneUserAreBoundedOverItsSessions) {
  absl::BlockingCounter answered(kUserLimit);
  Send(&answered);
  AwaitHeld();
  for (int i = 1; i < kUserLimit; ++i) Send(&answered);
  Await(kUserLimit, kUserLimit - 1);
  const auto other = Client::Connect(address());
  ASSERT_TRUE(other.ok()) << other.status();
  const absl::Status refused = (*other)->Run(request()).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("of one user"));
  EXPECT_EQ(Metric("gemmd_rejected_total{reason=\"quota\"}"), 1);
  Release();
  answered.Wait();
  EXPECT_TRUE((*other)->Run(request()).ok());
}

TEST_F(QueueTest, ARequestWhoseDeadlinePassesInTheQueueIsNotExecuted) {
  absl::BlockingCounter answered(1);
  Send(&answered);
  AwaitHeld();
  const absl::Status status = client().Run(request(), {.timeout = absl::Milliseconds(20)}).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  Await(1, 0);
  Release();
  answered.Wait();
  EXPECT_EQ(ExecutedJobs(), 1);
}

TEST_F(QueueTest, OnAStreamADeadlineEndsItsRequestAlone) {
  const std::unique_ptr<RunStream> stream = client().OpenStream();
  absl::BlockingCounter answered(2);
  const auto succeed = [&answered](const absl::StatusOr<v1::RunResponse>& response) {
    EXPECT_TRUE(response.ok()) << response.status();
    answered.DecrementCount();
  };
  ASSERT_TRUE(stream->Submit(request(), succeed).ok());
  AwaitHeld();
  v1::RunRequest urgent = request();
  urgent.set_timeout_us(20'000);
  absl::Status status;
  absl::Notification expired;
  ASSERT_TRUE(stream
                  ->Submit(urgent,
                           [&](const absl::StatusOr<v1::RunResponse>& response) {
                             status = response.status();
                             expired.Notify();
                           })
                  .ok());
  ASSERT_TRUE(expired.WaitForNotificationWithTimeout(kPatience));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  v1::RunRequest patient = request();
  patient.set_timeout_us(static_cast<uint64_t>(absl::ToInt64Microseconds(2 * kPatience)));
  ASSERT_TRUE(stream->Submit(patient, succeed).ok());
  Release();
  answered.Wait();
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(ExecutedJobs(), 2) << "what expired was executed";
}

TEST_F(QueueTest, ACancelledRequestIsNotExecuted) {
  absl::BlockingCounter answered(1);
  Send(&answered);
  AwaitHeld();
  const auto stub = v1::Gemm::NewStub(client().channel());
  grpc::ClientContext context;
  v1::RunResponse response;
  grpc::Status status;
  absl::Notification done;
  stub->async()->Run(&context, &request(), &response, [&](const grpc::Status& result) {
    status = result;
    done.Notify();
  });
  Await(2, 1);
  context.TryCancel();
  ASSERT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  Await(1, 0);
  Release();
  answered.Wait();
  EXPECT_EQ(ExecutedJobs(), 1);
}

TEST_F(QueueTest, RequestsOfACancelledStreamAreNotExecuted) {
  absl::BlockingCounter answered(1);
  Send(&answered);
  AwaitHeld();
  const auto stub = v1::Gemm::NewStub(client().channel());
  grpc::ClientContext context;
  const auto stream = stub->Stream(&context);
  v1::RunRequest one = request();
  for (int i = 0; i < kQueueLimit; ++i) {
    one.set_request_id(static_cast<uint64_t>(i) + 1);
    ASSERT_TRUE(stream->Write(one));
  }
  Await(1 + kQueueLimit, kQueueLimit);
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  Await(1, 0);
  Release();
  answered.Wait();
  EXPECT_EQ(ExecutedJobs(), 1);
}

TEST_F(QueueTest, AnOutputThatOverlapsOneInFlightIsAborted) {
  const auto problem = testing::MakeProblem(&client(), {.op = Op::kDense, .m = 4, .n = 16, .k = 16}, Transport::kHost);
  absl::Notification done;
  client().RunAsync(problem->request(), {}, [&done](const absl::StatusOr<v1::RunResponse>& response) {
    EXPECT_TRUE(response.ok()) << response.status();
    done.Notify();
  });
  AwaitHeld();
  v1::RunRequest second_row = problem->request();
  v1::TensorRef& d = *second_row.mutable_dense()->mutable_d();
  d.mutable_slice()->set_offset(d.slice().offset() + 16 * sizeof(uint16_t));  // Overlaps but is not equal.
  d.set_shape(0, 3);
  for (v1::TensorRef* ref : {second_row.mutable_dense()->mutable_a(), second_row.mutable_dense()->mutable_sfa()}) {
    ref->set_shape(0, 3);
  }
  const std::array<const v1::RunRequest*, 2> requests = {&problem->request(), &second_row};
  for (const v1::RunRequest* overlapping : requests) {
    const absl::Status refused = client().Run(*overlapping).status();
    EXPECT_TRUE(absl::IsAborted(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("d"));
  }
  Release();
  ASSERT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
  for (const v1::RunRequest* next : requests) {
    EXPECT_TRUE(client().Run(*next).ok()) << client().Run(*next).status();
  }
}

}  // namespace
}  // namespace gemmd
