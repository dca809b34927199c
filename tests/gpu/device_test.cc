// SPDX-License-Identifier: Apache-2.0
#include "gpu/device.h"

#include "absl/status/status.h"
#include <gtest/gtest.h>

namespace gemmd {
namespace {

TEST(DeviceTest, AFailureNamesTheFieldWhoseMemoryItIsAbout) {
  EXPECT_EQ(FailureReason(JobField::kA, absl::OkStatus()).rule, Rule::kNone);
  const auto expect = [](const absl::Status& status, JobField field, Rule rule, int64_t got) {
    const Reason reason = FailureReason(JobField::kGroups, status);
    EXPECT_EQ(reason.field, field) << status;
    EXPECT_EQ(reason.rule, rule) << status;
    EXPECT_EQ(reason.got, got) << status;
  };
  expect(absl::ResourceExhaustedError(""), JobField::kGroups, Rule::kOutOfMemory, 0);
  expect(absl::OutOfRangeError(""), JobField::kGroups, Rule::kRegionShrank, 0);
  expect(absl::UnimplementedError(""), JobField::kGroups, Rule::kUnsupported, 0);
  expect(absl::DataLossError(""), JobField::kDevice, Rule::kDeviceLost, static_cast<int>(absl::StatusCode::kDataLoss));
  expect(absl::InternalError(""), JobField::kDevice, Rule::kDeviceFailed,
         static_cast<int>(absl::StatusCode::kInternal));
}

TEST(DeviceTest, WithoutANumberOfBytesMemoryIsJustOut) {
  EXPECT_EQ(Describe(FailureReason(JobField::kD, absl::ResourceExhaustedError(""))), "d: out of memory");
  EXPECT_EQ(Describe({.field = JobField::kD, .rule = Rule::kOutOfMemory, .got = 7}), "d: no memory for 7 bytes");
}

}  // namespace
}  // namespace gemmd
