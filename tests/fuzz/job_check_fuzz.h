// SPDX-License-Identifier: Apache-2.0
#ifndef GEMMD_TESTS_FUZZ_JOB_CHECK_FUZZ_H_
#define GEMMD_TESTS_FUZZ_JOB_CHECK_FUZZ_H_

#include <cstddef>
#include <cstdint>

// The entry point that libFuzzer calls. Input: a JobDescriptor, then what the group array's region holds; shorter
// inputs stand for zeros.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // GEMMD_TESTS_FUZZ_JOB_CHECK_FUZZ_H_
