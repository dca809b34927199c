// SPDX-License-Identifier: Apache-2.0
#include "server/device_discovery.h"

#include "tests/e2e/process.h"

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include <filesystem>
#include <fstream>
#include <string>

namespace gemmd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A program that stands for the worker.
class DeviceDiscoveryTest : public ::testing::Test {
 protected:
  std::string Script(const std::string& body) {
    const std::string path = directory_.path() + "/worker";
    std::ofstream(path) << "#!/bin/sh\n[ \"$*\" = --list_gpus ] || exit 9\n" << body << "\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
  }

  testing::TemporaryDirectory directory_;
};

TEST_F(DeviceDiscoveryTest, GpusAreTakenByUuid) {
  const DeviceSupport support = FindDevices(Script("echo GPU-1 NVIDIA H100 80GB; echo GPU-2 NVIDIA H200"));
  EXPECT_THAT(support.gpus, ElementsAre("GPU-1", "GPU-2"));
}

TEST_F(DeviceDiscoveryTest, TheWorkersReasonIsKept) {
  const DeviceSupport support = FindDevices(Script("echo no driver here; exit 42"));
  EXPECT_THAT(support.gpus, IsEmpty());
  EXPECT_EQ(support.why_no_gpu, "no driver here");
}

TEST_F(DeviceDiscoveryTest, AWorkerThatCannotRunIsAReasonToo) {
  EXPECT_THAT(FindDevices("/no/such/worker").why_no_gpu, HasSubstr("cannot run /no/such/worker"));
  EXPECT_THAT(FindDevices(Script("kill -SEGV $$")).why_no_gpu, HasSubstr("ended with wait status"));
}

TEST_F(DeviceDiscoveryTest, AWorkerThatHangsIsKilled) {
  const absl::Time start = absl::Now();
  EXPECT_THAT(FindDevices(Script("exec sleep 60"), absl::Milliseconds(100)).why_no_gpu, HasSubstr("in time"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

}  // namespace
}  // namespace gemmd
