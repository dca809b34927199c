// SPDX-License-Identifier: Apache-2.0
// What a product in GPU memory takes beside its kernel: the `latency` measurement of gpu_memory_bench.
#ifndef GEMMD_TESTS_BENCH_GPU_LATENCY_H_
#define GEMMD_TESTS_BENCH_GPU_LATENCY_H_

#include "tests/bench/measure.h"

#include <string>

namespace gemmd {

// A dense product with A, SFA and D in each kind of memory, B resident, by unary gRPC and by a stream, one at a time;
// in turn with a bare gRPC round trip of messages of the same size (gemmd-echo-server) and with the kernel alone
// (gemmd-kernel-server). What the call takes beside the kernel's time on the GPU is `overhead`; over the round trip it
// is `overhead_ratio`, goal 1.2. `stages_p50_us`: from the client to the front end (`there`), its share and the
// worker's (v1::StageTimes), and from the front end to the client (`back`). `address`: of a gemmd on this machine,
// whose first worker has a GPU. Flags (--m, --paths, ...) are those of gpu_latency.cc. Ends the program at an error.
Json MeasureGpuLatency(const std::string& address);

}  // namespace gemmd

#endif  // GEMMD_TESTS_BENCH_GPU_LATENCY_H_
