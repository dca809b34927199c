// SPDX-License-Identifier: Apache-2.0
#ifndef GEMMD_TESTS_FUZZ_JOB_CHECK_FUZZ_H_
#define GEMMD_TESTS_FUZZ_JOB_CHECK_FUZZ_H_

#include <cstddef>
#include <cstdint>

// The entry point that libFuzzer calls. Input: one byte that says which valid job to start from (0: zeros), bytes that
// are XORed over its descriptor, then over what the group array's region holds.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // GEMMD_TESTS_FUZZ_JOB_CHECK_FUZZ_H_
