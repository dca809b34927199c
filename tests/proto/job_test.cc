// SPDX-License-Identifier: Apache-2.0
#include "proto/job.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <limits>
#include <set>
#include <string>

namespace gemmd {
namespace {

// The layout is a contract between processes; a change needs a new version.
static_assert(offsetof(OperandDescriptor, shape) == 16 && offsetof(OperandDescriptor, dtype) == 64);
static_assert(offsetof(JobDescriptor, op) == 32 && offsetof(JobDescriptor, group_alignment) == 40);
static_assert(offsetof(JobDescriptor, reserved2) == 48 + 7 * 72);
static_assert(offsetof(Reason, index) == 4 && offsetof(Reason, got) == 16);
static_assert(offsetof(JobCompletion, code) == 24 && offsetof(JobCompletion, reason) == 32 &&
              offsetof(JobCompletion, flops) == 56);

TEST(JobTest, DescribeIsTotalOverAllBitPatternsOfFieldAndRule) {
  constexpr int64_t kNumbers[] = {0, -1, 300, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
  for (int field = 0; field < 256; ++field) {
    for (int rule = 0; rule < 256; ++rule) {
      for (const int64_t number : kNumbers) {
        Reason reason;
        reason.field = static_cast<JobField>(field);
        reason.rule = static_cast<Rule>(rule);
        reason.index = static_cast<int32_t>(number);
        reason.expected = reason.got = number;
        const std::string text = Describe(reason);
        ASSERT_FALSE(text.empty());
        ASSERT_LT(text.size(), 250u);
      }
    }
  }
}

TEST(JobTest, EveryRuleHasItsOwnWords) {
  std::set<std::string> texts;
  for (int rule = 0; rule <= static_cast<int>(Rule::kLast); ++rule) {
    texts.insert(Describe({.field = JobField::kA, .rule = static_cast<Rule>(rule), .expected = 4, .got = 5}));
  }
  EXPECT_EQ(texts.size(), static_cast<size_t>(Rule::kLast) + 1);
  EXPECT_EQ(texts.count("a: unknown reason 3"), 0u);
}

TEST(JobTest, DescribeNamesFieldExpectedAndGot) {
  EXPECT_EQ(Describe({.field = JobField::kB, .rule = Rule::kExtent, .index = 1, .expected = 7168, .got = 7000}),
            "b.shape[1]: expected 7168, got 7000");
  EXPECT_EQ(Describe({.field = JobField::kPriority, .rule = Rule::kUnknownValue, .expected = 3, .got = 9}),
            "priority: expected at most 3, got 9");
}

TEST(JobTest, OnlySuccessHasCodeZero) {
  for (int rule = 0; rule < 256; ++rule) EXPECT_EQ(CodeOf(static_cast<Rule>(rule)) == 0, rule == 0);
}

TEST(JobTest, NamesAreTotal) {
  for (int value = 0; value < 256; ++value) {
    EXPECT_FALSE(Name(static_cast<Op>(value)).empty());
    EXPECT_FALSE(Name(static_cast<Scaling>(value)).empty());
  }
}

}  // namespace
}  // namespace gemmd
