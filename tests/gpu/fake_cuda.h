// SPDX-License-Identifier: Apache-2.0
// What the fake CUDA driver (fake_cuda.cc, a libcuda.so.1 whose GPU memory is memfds) and the fake worker share: both
// see the same memory, so that clients with GPU memory are tested without a GPU.
#ifndef GEMMD_TESTS_GPU_FAKE_CUDA_H_
#define GEMMD_TESTS_GPU_FAKE_CUDA_H_

#include <cstdint>

namespace gemmd::testing {

inline constexpr const char* kFakeGpus[] = {"GPU-00000000-0000-0000-0000-000000000000",
                                            "GPU-01010101-0101-0101-0101-010101010101"};

// The begin of a legacy IPC handle: where the memfd of the allocation is found, and its inode, since a number may
// become another file's. The rest is zero.
struct FakeIpcHandle {
  int32_t pid = 0;
  int32_t fd = -1;
  uint64_t inode = 0;
};

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_GPU_FAKE_CUDA_H_
