// SPDX-License-Identifier: Apache-2.0
// What fuzz targets demand of the code under test: a plain abort, since neither libFuzzer nor a crash handler needs
// more.
#ifndef GEMMD_TESTS_FUZZ_REQUIRE_H_
#define GEMMD_TESTS_FUZZ_REQUIRE_H_

#include <cstdlib>

namespace gemmd {

inline void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace gemmd

#endif  // GEMMD_TESTS_FUZZ_REQUIRE_H_
