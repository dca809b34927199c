// SPDX-License-Identifier: Apache-2.0
// What test_main_test runs, a few of its cases at a time.
#include <gtest/gtest.h>

namespace gemmd {
namespace {

TEST(TestMainSample, Passes) {}
TEST(TestMainSample, Fails) { FAIL() << "as test_main_test wants it"; }
TEST(TestMainSample, IsSkipped) { GTEST_SKIP() << "as test_main_test wants it"; }

}  // namespace
}  // namespace gemmd
