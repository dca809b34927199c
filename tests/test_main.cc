// SPDX-License-Identifier: Apache-2.0
// main() of every GoogleTest program. Exits with 77 when nothing failed and some case was skipped, which ctest reports
// as skipped: a case that did not run is not a pass. A failure is a failure whatever else was skipped, which ctest's
// SKIP_REGULAR_EXPRESSION would not see.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

namespace {

constexpr int kSkipped = 77;

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  const int failed = RUN_ALL_TESTS();
  if (failed != 0) return failed;
  const int skipped = ::testing::UnitTest::GetInstance()->skipped_test_count();
  if (skipped == 0) return 0;
  std::printf("skipped: %d case(s), named above with the reason\n", skipped);
  return kSkipped;
}
