// SPDX-License-Identifier: Apache-2.0
// Any fuzz target without a fuzzer, so that it is compiled and run where there is none: seeded random inputs.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace gemmd {
namespace {

constexpr uint64_t kSeed = 20240607;
constexpr int kInputs = 2000;
constexpr size_t kMaxBytes = 1024;

TEST(FuzzTargetTest, RandomInputsAreSurvived) {
  std::mt19937_64 random(kSeed);
  for (int i = 0; i < kInputs; ++i) {
    std::vector<uint8_t> bytes(random() % kMaxBytes);
    // Mostly zeros, which leave what a target builds on as it is, up to all noise.
    const uint64_t noise = random() % 256;
    for (uint8_t& byte : bytes) byte = random() % 256 < noise ? static_cast<uint8_t>(random()) : 0;
    ASSERT_EQ(LLVMFuzzerTestOneInput(bytes.data(), bytes.size()), 0);
  }
}

}  // namespace
}  // namespace gemmd
