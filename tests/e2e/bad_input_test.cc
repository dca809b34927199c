// SPDX-License-Identifier: Apache-2.0
// What a real daemon answers to requests that are wrong: the code, and a message that names the field. The exhaustive
// list of job rules is tests/gpu/job_check_test.cc; this is the whole way from a client and back.
#include "client/client.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kM = 16;
constexpr int64_t kN = 32;
constexpr int64_t kK = 256;
constexpr uint64_t kRegionBytes = 1 << 20;

class BadInputTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto daemon = testing::Daemon::Start({.flags = {"--max_message_bytes=1048576"}, .tcp = true});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    auto region = client_->CreateHostRegion(kRegionBytes);
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
  }
  static void TearDownTestSuite() {
    region_ = HostRegion();
    client_.reset();
    daemon_.reset();
  }

  // A legal product in the region.
  static DenseCall Legal() {
    return {.a = region_.View(0, DType::kE4m3, {kM, kK}),
            .sfa = region_.View(16384, DType::kF32, {kM, kK / 128}),
            .b = region_.View(32768, DType::kE4m3, {kN, kK}),
            .sfb = region_.View(65536, DType::kF32, {1, kK / 128}),
            .d = region_.View(131072, DType::kBf16, {kM, kN})};
  }

  static absl::Status Run(const DenseCall& call) { return client_->Dense(call).status(); }

  static inline std::unique_ptr<testing::Daemon> daemon_;
  static inline std::unique_ptr<Client> client_;
  static inline HostRegion region_;
};

TEST_F(BadInputTest, TheLegalProductIsAccepted) { EXPECT_TRUE(Run(Legal()).ok()) << Run(Legal()); }

TEST_F(BadInputTest, EveryWrongFieldIsNamed) {
  struct Case {
    const char* name;
    std::function<void(DenseCall&)> change;
    absl::StatusCode code;
    const char* text;
  };
  const std::vector<Case> cases = {
      {"K of B",
       [](DenseCall& call) {
         call.b.shape = {kN, kK - 16};
       },
       absl::StatusCode::kInvalidArgument, "b.shape[1]"},
      {"M of D",
       [](DenseCall& call) {
         call.d.shape = {kM + 1, kN};
       },
       absl::StatusCode::kInvalidArgument, "d.shape[0]"},
      {"rank", [](DenseCall& call) { call.a.shape = {kM * kK}; }, absl::StatusCode::kInvalidArgument, "a.shape"},
      {"dtype of A", [](DenseCall& call) { call.a.dtype = DType::kF32; }, absl::StatusCode::kInvalidArgument,
       "a.dtype"},
      {"dtype of D", [](DenseCall& call) { call.d.dtype = DType::kE4m3; }, absl::StatusCode::kInvalidArgument,
       "d.dtype"},
      {"SFA columns",
       [](DenseCall& call) {
         call.sfa.shape = {kM, 1};
       },
       absl::StatusCode::kInvalidArgument, "sfa.shape[1]"},
      {"SFB rows",
       [](DenseCall& call) {
         call.sfb.shape = {2, 2};
       },
       absl::StatusCode::kInvalidArgument, "sfb.shape[0]"},
      {"inner stride",
       [](DenseCall& call) {
         call.a.strides = {kK * 2, 2};
       },
       absl::StatusCode::kInvalidArgument, "a.strides[1]"},
      {"pitch",
       [](DenseCall& call) {
         call.a.strides = {kK + 8, 1};
       },
       absl::StatusCode::kInvalidArgument, "a.strides[0]"},
      {"alignment", [](DenseCall& call) { call.a.offset = 8; }, absl::StatusCode::kInvalidArgument, "a.offset"},
      {"no SFA", [](DenseCall& call) { call.sfa = {}; }, absl::StatusCode::kInvalidArgument, "sfa"},
      {"no scaling", [](DenseCall& call) { call.scaling = Scaling::kUnset; }, absl::StatusCode::kInvalidArgument,
       "scaling"},
      {"accumulate BF16", [](DenseCall& call) { call.accumulate = true; }, absl::StatusCode::kInvalidArgument,
       "d.dtype"},
      {"negative extent",
       [](DenseCall& call) {
         call.a.shape = {-1, kK};
       },
       absl::StatusCode::kInvalidArgument, "a.shape[0]"},
      {"past the end", [](DenseCall& call) { call.b.offset = kRegionBytes - 16; }, absl::StatusCode::kOutOfRange, "b"},
      {"offset overflow", [](DenseCall& call) { call.b.offset = std::numeric_limits<uint64_t>::max() - 15; },
       absl::StatusCode::kOutOfRange, "b"},
      {"huge extent",
       [](DenseCall& call) {
         call.a.shape = {std::numeric_limits<int64_t>::max(), kK};
       },
       absl::StatusCode::kInvalidArgument, "a.shape[0]"},
      {"D over A", [](DenseCall& call) { call.d.offset = 0; }, absl::StatusCode::kInvalidArgument, "d"},
      {"unknown region", [](DenseCall& call) { call.a.id += 1000; }, absl::StatusCode::kNotFound, "a"},
  };
  for (const Case& one : cases) {
    DenseCall call = Legal();
    one.change(call);
    const absl::Status status = Run(call);
    EXPECT_EQ(status.code(), one.code) << one.name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.text)) << one.name;
  }
}

TEST_F(BadInputTest, ZeroExtentsAreLegal) {
  DenseCall no_rows = Legal();
  no_rows.a.shape = {0, kK};
  no_rows.sfa.shape = {0, kK / 128};
  no_rows.d.shape = {0, kN};
  EXPECT_TRUE(Run(no_rows).ok()) << Run(no_rows);

  DenseCall no_columns = Legal();
  no_columns.b.shape = {0, kK};
  no_columns.sfb.shape = {0, kK / 128};
  no_columns.d.shape = {kM, 0};
  EXPECT_TRUE(Run(no_columns).ok()) << Run(no_columns);

  DenseCall no_depth = Legal();
  no_depth.a.shape = {kM, 0};
  no_depth.sfa.shape = {kM, 0};
  no_depth.b.shape = {kN, 0};
  no_depth.sfb.shape = {1, 0};
  const absl::Span<uint16_t> d = region_.Elements<uint16_t>(131072, kM * kN);
  std::fill(d.begin(), d.end(), uint16_t{0x7fc0});
  ASSERT_TRUE(Run(no_depth).ok()) << Run(no_depth);
  EXPECT_THAT(d, ::testing::Each(0)) << "a product over no K is zero";
}

TEST_F(BadInputTest, AForeignRegionLooksLikeAnUnknownOne) {
  const auto other = Client::Connect(daemon_->address());
  ASSERT_TRUE(other.ok()) << other.status();
  const absl::Status foreign = (*other)->Dense(Legal()).status();
  DenseCall unknown = Legal();
  for (TensorView* view : {&unknown.a, &unknown.sfa, &unknown.b, &unknown.sfb, &unknown.d}) view->id = 999'999;
  const absl::Status missing = (*other)->Dense(unknown).status();
  EXPECT_EQ(foreign.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(foreign, missing) << "the answer must not tell whether the region exists";
}

TEST_F(BadInputTest, AClosedRegionIsNotFound) {
  DenseCall call = Legal();
  {
    const auto closed = client_->CreateHostRegion(4096);
    ASSERT_TRUE(closed.ok());
    call.a.id = closed->id();
  }
  const absl::Status status = Run(call);
  EXPECT_TRUE(absl::IsNotFound(status) || absl::IsFailedPrecondition(status)) << status;
}

TEST_F(BadInputTest, AForeignPrivateTensorIsNotFound) {
  const auto tensor = client_->CreateTensor({.dtype = DType::kE4m3, .shape = {kN, kK}});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  const auto other = Client::Connect(daemon_->address());
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_TRUE(absl::IsNotFound((*other)->ReadTensor(tensor->id()).status()));
  EXPECT_TRUE(absl::IsNotFound((*other)->DeleteTensor(tensor->id())));
  EXPECT_TRUE(client_->DeleteTensor(tensor->id()).ok());
  EXPECT_TRUE(absl::IsNotFound(client_->DeleteTensor(tensor->id())));
}

TEST_F(BadInputTest, AForgedSecretIsUnauthenticated) {
  const auto stub = v1::Tensors::NewStub(client_->channel());
  grpc::ClientContext context;
  context.AddMetadata(kSessionMetadata, absl::StrCat(client_->session().id()));
  context.AddMetadata(kSecretMetadata, std::string(32, '0'));
  v1::ListTensorsResponse response;
  const grpc::Status status = stub->List(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << status.error_message();
}

TEST_F(BadInputTest, AMessageOverTheLimitIsRefused) {
  const std::vector<uint8_t> a(2 << 20);
  DenseCall call = Legal();
  call.a = Inline<uint8_t>(a, DType::kE4m3, {8192, kK});
  EXPECT_TRUE(absl::IsResourceExhausted(Run(call))) << Run(call);
  EXPECT_TRUE(Run(Legal()).ok()) << "the connection goes on";
}

TEST_F(BadInputTest, InlineBytesMustMatchTheShape) {
  const std::vector<uint8_t> a(kM * kK - 1);
  DenseCall call = Legal();
  call.a = Inline<uint8_t>(a, DType::kE4m3, {kM, kK});
  const absl::Status status = Run(call);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(kM * kK)));
}

TEST_F(BadInputTest, OverTcpMemoryOfThisMachineCannotBeNamed) {
  const auto remote = Client::Connect(daemon_->tcp_address());
  ASSERT_TRUE(remote.ok()) << remote.status();
  EXPECT_TRUE(absl::IsNotFound((*remote)->Dense(Legal()).status()));
  EXPECT_TRUE(absl::IsPermissionDenied((*remote)->Drain())) << "admin calls belong to the Unix socket";
}

TEST_F(BadInputTest, ACompressedMessageIsRefused) {
  const std::vector<uint8_t> zeros(kM * kK);
  DenseCall call = Legal();
  call.a = Inline<uint8_t>(zeros, DType::kE4m3, {kM, kK});
  const auto stub = v1::Gemm::NewStub(client_->channel());
  for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_NONE}) {
    grpc::ClientContext context;
    client_->session().Authorize(&context);
    context.set_compression_algorithm(algorithm);
    v1::RunResponse response;
    const grpc::Status status = stub->Run(&context, ToRequest(call), &response);
    const bool refused = algorithm != GRPC_COMPRESS_NONE;
    EXPECT_EQ(status.error_code(), refused ? grpc::StatusCode::UNIMPLEMENTED : grpc::StatusCode::OK)
        << algorithm << ": " << status.error_message();
  }
}

TEST_F(BadInputTest, NothingIsLeftAfterAThousandRefusals) {
  const std::vector<uint8_t> short_bytes(kM * kK - 1);
  const std::vector<uint8_t> long_bytes(2 << 20);
  std::vector<std::pair<DenseCall, absl::StatusCode>> refusals(5, {Legal(), absl::StatusCode::kInvalidArgument});
  refusals[0].first.a.shape = {kM, kK + 16};                                   // By the worker.
  refusals[1].first.a = Inline<uint8_t>(short_bytes, DType::kE4m3, {kM, kK});  // While it is staged.
  refusals[2] = {Legal(), absl::StatusCode::kOutOfRange};                      // By the worker.
  refusals[2].first.b.offset = kRegionBytes - 16;
  refusals[3] = {Legal(), absl::StatusCode::kNotFound};  // After A was staged.
  refusals[3].first.a = Inline<uint8_t>(absl::MakeConstSpan(long_bytes).first(kM * kK), DType::kE4m3, {kM, kK});
  refusals[3].first.b.id += 1000;
  refusals[4] = {Legal(), absl::StatusCode::kResourceExhausted};  // By gRPC.
  refusals[4].first.a = Inline<uint8_t>(long_bytes, DType::kE4m3, {8192, kK});
  for (const auto& [call, code] : refusals) EXPECT_EQ(Run(call).code(), code) << Run(call);
  const int descriptors = daemon_->OpenDescriptors();
  const pid_t worker = daemon_->WorkerPids().at(0);
  const int worker_descriptors = testing::OpenDescriptors(worker);
  for (int i = 0; i < 1000; ++i) {
    const auto& [call, code] = refusals[static_cast<size_t>(i) % refusals.size()];
    EXPECT_EQ(Run(call).code(), code);
  }
  // Connections of tests before this one may still be closing, so there may be fewer.
  EXPECT_LE(daemon_->OpenDescriptors(), descriptors);
  EXPECT_LE(testing::OpenDescriptors(worker), worker_descriptors);
  EXPECT_TRUE(testing::WaitUntil(absl::Seconds(10), [] {
    const auto info = client_->GetInfo();  // One region is the test's own.
    return daemon_->Metric("gemmd_arena_used_bytes").value_or(-1) == 0 &&
           daemon_->Metric("gemmd_inflight_requests").value_or(-1) == 0 && info.ok() && info->regions() == 1 &&
           info->tensors() == 0;
  }));
  EXPECT_TRUE(Run(Legal()).ok());
}

}  // namespace
}  // namespace gemmd
