// SPDX-License-Identifier: Apache-2.0
#include "server/options.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemmd {
namespace {

using ::testing::ElementsAre;

ServerOptions Valid() {
  ServerOptions options;
  options.listen.unix_path = "/run/gemmd/gemmd.sock";
  options.workers = {"cpu"};
  return options;
}

TEST(OptionsTest, ListenTakesAUnixPathAndTcpAddresses) {
  const absl::StatusOr<ListenAddresses> listen = ParseListen("unix:/tmp/a.sock, 127.0.0.1:0,[::1]:50051");
  ASSERT_TRUE(listen.ok()) << listen.status();
  EXPECT_EQ(listen->unix_path, "/tmp/a.sock");
  EXPECT_THAT(listen->tcp, ElementsAre("127.0.0.1:0", "[::1]:50051"));
}

TEST(OptionsTest, ListenNeedsExactlyOneAbsoluteUnixPath) {
  for (const char* text :
       {"127.0.0.1:0", "unix:/a,unix:/b", "unix:a.sock", "unix:", "", "unix:/a,nonsense", "unix:/a,host:70000"}) {
    EXPECT_EQ(ParseListen(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(OptionsTest, AUnixPathThatLeavesNoRoomForTheBrokerIsRefused) {
  EXPECT_TRUE(ParseListen("unix:/" + std::string(98, 'a')).ok());
  EXPECT_FALSE(ParseListen("unix:/" + std::string(102, 'a')).ok());
}

const DeviceSupport kNoGpu{{}, "no driver"};
const DeviceSupport kTwoGpus{{"GPU-a", "GPU-b"}, ""};

TEST(OptionsTest, AutoTakesEveryGpuIfThereIsOne) {
  EXPECT_THAT(*ParseWorkers("auto", kNoGpu), ElementsAre("cpu"));
  EXPECT_THAT(*ParseWorkers("auto", kTwoGpus), ElementsAre("GPU-a", "GPU-b"));
}

TEST(OptionsTest, WorkersMayShareADevice) {
  EXPECT_THAT(*ParseWorkers("cpu,cpu", kNoGpu), ElementsAre("cpu", "cpu"));
  EXPECT_THAT(*ParseWorkers("gpu:1,gpu:1", kTwoGpus), ElementsAre("GPU-b", "GPU-b"));
  EXPECT_THAT(*ParseWorkers("gpu,cpu", kTwoGpus), ElementsAre("GPU-a", "GPU-b", "cpu"));
}

TEST(OptionsTest, AMissingGpuIsSaidClearly) {
  const absl::Status status = ParseWorkers("gpu", kNoGpu).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "--workers: expected a Hopper GPU for \"gpu\", found 0: no driver");
  for (const char* text : {"gpu:2", "GPU-c"}) {
    EXPECT_EQ(ParseWorkers(text, kTwoGpus).status().code(), absl::StatusCode::kFailedPrecondition) << text;
  }
  EXPECT_THAT(*ParseWorkers("GPU-b", kTwoGpus), ElementsAre("GPU-b"));
}

TEST(OptionsTest, UnknownWorkersAreRefused) {
  for (const char* text : {"", "tpu", "gpu:x", "gpu:-1", "cpu,"}) {
    EXPECT_EQ(ParseWorkers(text, kTwoGpus).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(OptionsTest, UidsAreNumbers) {
  EXPECT_EQ(*ParseUids(""), std::nullopt);
  EXPECT_THAT(**ParseUids("0,1000,4294967294"), ElementsAre(0u, 1000u, 4294967294u));
  for (const char* text : {"root", "1000,", "-1", "4294967295", "4294967296"}) {
    EXPECT_EQ(ParseUids(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(ParseUids("1,root").status().message(), "--allow_uids: expected numeric user ids, got \"root\"");
}

TEST(OptionsTest, LoopbackIsOnlyWhatCannotBeAnythingElse) {
  for (const char* text : {"127.0.0.1:1", "127.8.9.10:1", "localhost:1", "[::1]:1"})
    EXPECT_TRUE(IsLoopback(text)) << text;
  for (const char* text : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "127.0.0.1.example.com:1", "127.0.0.x:1", "host:1"}) {
    EXPECT_FALSE(IsLoopback(text)) << text;
  }
}

TEST(OptionsTest, SpinIsAtMostASecond) {
  ServerOptions options = Valid();
  for (const int spin_us : {-1, 0, 1'000'000}) {
    options.spin_us = spin_us;
    EXPECT_TRUE(Validate(options).ok()) << spin_us;
  }
  for (const int spin_us : {-2, 1'000'001}) {
    options.spin_us = spin_us;
    EXPECT_EQ(Validate(options),
              absl::InvalidArgumentError(absl::StrCat("--spin_us: expected -1 to 1000000, got ", spin_us)));
  }
}

TEST(OptionsTest, PlainTcpBeyondLoopbackNeedsInsecure) {
  ServerOptions options = Valid();
  options.listen.tcp = {"0.0.0.0:50051"};
  EXPECT_FALSE(Validate(options).ok());
  options.insecure = true;
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, TlsNeedsCertificateAndKey) {
  ServerOptions options = Valid();
  options.listen.tcp = {"0.0.0.0:50051"};
  options.tls.certificate = "cert.pem";
  EXPECT_FALSE(Validate(options).ok());
  options.tls.key = "key.pem";
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, TokensNeedTcpToGuard) {
  ServerOptions options = Valid();
  options.token_file = "tokens";
  EXPECT_EQ(Validate(options).message(), "--token_file: expected a HOST:PORT in --listen to guard");
  options.listen.tcp = {"127.0.0.1:50051"};
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, TokensDoNotReplaceTls) {
  ServerOptions options = Valid();
  options.token_file = "tokens";
  options.listen.tcp = {"0.0.0.0:50051"};
  EXPECT_FALSE(Validate(options).ok());
  options.insecure = true;
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, TheArenaHoldsTheLargestRequestAndItsResult) {
  ServerOptions options = Valid();
  EXPECT_TRUE(Validate(options).ok());
  options.arena_bytes = options.max_message_bytes;
  EXPECT_FALSE(Validate(options).ok());
}

TEST(OptionsTest, TensorDirectoriesAreAbsolute) {
  EXPECT_THAT(*ParseTensorDirectories("/a,/b/c"), ElementsAre("/a", "/b/c"));
  EXPECT_TRUE(ParseTensorDirectories("")->empty());
  for (const char* text : {"a", "/a,", ",/a", "/a, /b"}) {
    EXPECT_EQ(ParseTensorDirectories(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(OptionsTest, ATensorManifestNeedsDirectories) {
  ServerOptions options = Valid();
  options.tensor_manifest = "tensors.json";
  EXPECT_EQ(Validate(options).message(), "--tensor_manifest: expected --tensor_dirs with it, whose files it names");
  options.tensor_dirs = {"/models"};
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, ConnectionsLiveForAWhile) {
  ServerOptions options = Valid();
  options.max_connection_age = absl::Milliseconds(99);
  EXPECT_EQ(Validate(options).message(), "--max_connection_age: expected at least 100ms, got 99ms");
  options.max_connection_age = absl::Minutes(5);
  EXPECT_TRUE(Validate(options).ok());
}

TEST(OptionsTest, MessageSizesOutOfRangeAreRefused) {
  ServerOptions options = Valid();
  options.max_message_bytes = 1;
  EXPECT_FALSE(Validate(options).ok());
  options.max_message_bytes = int64_t{1} << 40;
  EXPECT_FALSE(Validate(options).ok());
}

}  // namespace
}  // namespace gemmd
