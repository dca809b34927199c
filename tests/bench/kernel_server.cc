// SPDX-License-Identifier: Apache-2.0
// The kernel of gpu_memory_bench's product, without gemmd around it: a bare gRPC callback server that answers each
// Gemm.Run with one dense product (1D2D to BF16, random operands of its own) and StageTimes.device_ns. For a request_id
// of 0 that is what this process waits for it, from before the launch; otherwise what the GPU takes, by events that
// reach it together with the kernel. One call at a time.
//
// Usage: gemmd-kernel-server SOCKET_PATH M N K RESPONSE_BYTES; prints "ready" and runs until its standard input ends.
// Needs a Hopper GPU: the first that CUDA shows.
#include "gemmd/v1/gemm.grpc.pb.h"
#include "gpu/cuda/gemm_launcher.h"
#include "tests/bench/serve_bare.h"
#include "tests/device/gpu_workbench.h"

#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include <cuda_runtime_api.h>
#include <grpcpp/grpcpp.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

namespace gemmd {
namespace {

class KernelTimer {
 public:
  KernelTimer(std::unique_ptr<GemmLauncher> launcher, int64_t m, int64_t n, int64_t k)
      : launcher_(std::move(launcher)),
        bench_({"dense", KernelScaling::kRowBlock, KernelOutput::kBf16, m, n, k, {}}, kernels_),
        config_(launcher_->ConfigOf(bench_.call())) {
    Must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    Must(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "making an event");
    Must(cudaEventCreate(&begin_), "making an event");
    Must(cudaEventCreate(&end_), "making an event");
    Must(cudaDeviceSynchronize(), "making operands");
    NanosWaited();  // Compiles the kernel.
  }

  int64_t NanosWaited() {
    Must(cudaSetDevice(0), "opening the GPU");  // gRPC calls on threads of its own.
    const int64_t begin = absl::GetCurrentTimeNanos();
    Launch();
    Must(cudaEventRecord(done_, stream_), "recording an event");
    Must(cudaEventSynchronize(done_), "running");
    return absl::GetCurrentTimeNanos() - begin;
  }

  int64_t NanosOnGpu() {
    Must(cudaSetDevice(0), "opening the GPU");
    // The stream waits for this function, so that what follows is all there when the GPU goes on.
    Must(cudaLaunchHostFunc(
             stream_, [](void*) {}, nullptr),
         "enqueuing a function");
    Must(cudaEventRecord(begin_, stream_), "recording an event");
    Launch();
    Must(cudaEventRecord(end_, stream_), "recording an event");
    Must(cudaEventSynchronize(end_), "running");
    float milliseconds = 0;
    Must(cudaEventElapsedTime(&milliseconds, begin_, end_), "reading events");
    return static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6);
  }

 private:
  void Launch() {
    if (const absl::Status status = launcher_->Launch(bench_.call(), stream_, config_); !status.ok()) {
      std::fprintf(stderr, "kernel_server: %s\n", status.ToString().c_str());
      std::_Exit(1);
    }
  }

  const std::unique_ptr<GemmLauncher> launcher_;
  TestKernels kernels_;
  Workbench bench_;
  const GemmConfig config_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

class KernelService final : public v1::Gemm::CallbackService {
 public:
  KernelService(KernelTimer& timer, size_t response_bytes) : timer_(timer), payload_(response_bytes, 'x') {}

  grpc::ServerUnaryReactor* Run(grpc::CallbackServerContext* context, const v1::RunRequest* request,
                                v1::RunResponse* response) override {
    int64_t nanos = 0;
    {
      absl::MutexLock lock(&mutex_);
      nanos = request->request_id() == 0 ? timer_.NanosWaited() : timer_.NanosOnGpu();
    }
    response->set_request_id(request->request_id());
    response->mutable_times()->set_device_ns(static_cast<uint64_t>(nanos));
    response->set_d(payload_);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  absl::Mutex mutex_;
  KernelTimer& timer_ ABSL_GUARDED_BY(mutex_);
  const std::string payload_;
};

int Serve(const std::string& socket, const std::array<int64_t, 4>& numbers) {
  absl::StatusOr<std::unique_ptr<GemmLauncher>> launcher = GemmLauncher::Create({});
  if (!launcher.ok()) {
    std::fprintf(stderr, "kernel_server: %s\n", launcher.status().ToString().c_str());
    return 1;
  }
  KernelTimer timer(*std::move(launcher), numbers[0], numbers[1], numbers[2]);
  KernelService service(timer, static_cast<size_t>(numbers[3]));
  return ServeBare(service, socket);
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  std::array<int64_t, 4> numbers = {};
  bool valid = argc == 6;
  for (size_t i = 0; valid && i < numbers.size(); ++i) valid = absl::SimpleAtoi(argv[i + 2], &numbers[i]);
  if (!valid) {
    std::fprintf(stderr, "usage: %s SOCKET_PATH M N K RESPONSE_BYTES\n", argv[0]);
    return 2;
  }
  return gemmd::Serve(argv[1], numbers);
}
