// SPDX-License-Identifier: Apache-2.0
// launch_bench [--launches=N] [--cache=DIR]: what does the host spend on one launch? Enqueues products without waiting,
// lets the GPU catch up every so often, and reports the median wall and CPU time of GemmLauncher::Launch beside those
// of launching an empty kernel, which nothing can be below. One JSON object. Run it without a profiler.
#include "gpu/cuda/gemm_launcher.h"
#include "tests/device/gpu_workbench.h"

#include "absl/strings/match.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr int kBurst = 64;  // Launches between two waits: far below what a stream holds before a launch blocks.

double Micros(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct HostTimes {
  double wall_us = 0;        // Median of single launches.
  double wall_p99_us = 0;    // Of single launches.
  double cpu_us = 0;         // Median of single launches, without what reading the clock costs.
  double burst_cpu_us = 0;   // Median over bursts of the mean: no clock inside.
  double burst_wall_us = 0;  // The same.
};

// `launch` gets the number of the launch.
HostTimes Measure(int launches, const std::function<void(int)>& launch) {
  for (int i = 0; i < kBurst; ++i) launch(i);
  Must(cudaDeviceSynchronize(), "running");
  std::vector<double> clock_costs;
  for (int i = 0; i < 1000; ++i) {
    const double begin = Micros(CLOCK_THREAD_CPUTIME_ID);
    clock_costs.push_back(Micros(CLOCK_THREAD_CPUTIME_ID) - begin);
  }
  const double clock_cost = Median(clock_costs);
  std::vector<double> wall, cpu, burst_cpu, burst_wall;
  for (int i = 0; i < launches; ++i) {
    if (i % kBurst == 0) Must(cudaDeviceSynchronize(), "running");
    const double begin = Micros(CLOCK_MONOTONIC);
    launch(i);
    wall.push_back(Micros(CLOCK_MONOTONIC) - begin);
  }
  for (int i = 0; i < launches; ++i) {
    if (i % kBurst == 0) Must(cudaDeviceSynchronize(), "running");
    const double begin = Micros(CLOCK_THREAD_CPUTIME_ID);
    launch(i);
    cpu.push_back(Micros(CLOCK_THREAD_CPUTIME_ID) - begin - clock_cost);
  }
  for (int burst = 0; burst < std::max(launches / kBurst, 1); ++burst) {
    Must(cudaDeviceSynchronize(), "running");
    const double cpu_begin = Micros(CLOCK_THREAD_CPUTIME_ID);
    const double wall_begin = Micros(CLOCK_MONOTONIC);
    for (int i = 0; i < kBurst; ++i) launch(i);
    burst_wall.push_back((Micros(CLOCK_MONOTONIC) - wall_begin) / kBurst);
    burst_cpu.push_back((Micros(CLOCK_THREAD_CPUTIME_ID) - cpu_begin) / kBurst);
  }
  Must(cudaDeviceSynchronize(), "running");
  HostTimes times{Median(wall), 0, Median(cpu), Median(burst_cpu), Median(burst_wall)};
  std::sort(wall.begin(), wall.end());
  times.wall_p99_us = wall[wall.size() * 99 / 100];
  return times;
}

void Print(const char* name, const HostTimes& t, const std::string& config, bool last) {
  std::printf(
      " {\"what\": \"%s\", \"config\": \"%s\", \"wall_us\": %.2f, \"wall_p99_us\": %.2f, \"cpu_us\": %.2f, "
      "\"burst_wall_us\": %.2f, \"burst_cpu_us\": %.2f}%s\n",
      name, config.c_str(), t.wall_us, t.wall_p99_us, t.cpu_us, t.burst_wall_us, t.burst_cpu_us, last ? "" : ",");
  std::fflush(stdout);
}

struct Case {
  const char* name;
  Product product;
  bool moving;  // Group sizes and addresses differ from launch to launch.
  bool rows_on_gpu = false;
};

// Products too short to hold the host up.
std::vector<Case> Cases() {
  const auto product = [](const char* kind, int64_t m, std::vector<int64_t> groups) {
    Product p{kind, KernelScaling::kRowBlock, KernelOutput::kBf16, m, 512, 512, std::move(groups)};
    return p;
  };
  std::vector<int64_t> masked(32);
  for (size_t g = 0; g < masked.size(); ++g) masked[g] = static_cast<int64_t>(3 + g % 7);
  return {
      {"dense", product("dense", 16, {}), false},
      {"dense, another shape and address each time", product("dense", 128, {}), true},
      {"contiguous, 8 groups", product("contiguous", 0, {20, 17, 30, 25, 9, 40, 22, 31}), false},
      {"contiguous, 8 groups, other rows each time", product("contiguous", 0, {20, 17, 30, 25, 9, 40, 22, 31}), true},
      {"masked, 32 groups", product("masked", 64, masked), false},
      {"masked, 32 groups, other rows each time", product("masked", 64, masked), true},
      {"masked, 32 groups, rows in GPU memory (two launches)", product("masked", 64, masked), false, true}};
}

// The call as launch `i` makes it: fewer rows, from another address.
void Move(const GemmCall& original, int i, GemmCall* call) {
  for (size_t s = 0; s < call->segments.size(); ++s) {
    const Segment& from = original.segments[s];
    const int rows = from.row_end - from.row_begin;
    call->segments[s].row_end = from.row_begin + 1 + (i * 7 + static_cast<int>(s)) % rows;
  }
  if (call->clip_rows) return;
  const int skipped = i % 16;
  call->a.rows = call->d.rows = call->segments[0].row_end = 1 + i % 64;
  call->a.data = static_cast<char*>(original.a.data) + skipped * original.a.row_stride;
  call->d.data = static_cast<char*>(original.d.data) + skipped * original.d.row_stride * 2;
}

int Run(int launches, const GemmLauncher::Options& options) {
  absl::StatusOr<std::unique_ptr<GemmLauncher>> launcher = GemmLauncher::Create(options);
  if (!launcher.ok()) {
    std::printf("%s\n", launcher.status().ToString().c_str());
    return 77;
  }
  TestKernels kernels;
  std::printf("{\"launches\": %d, \"times\": [\n", launches);
  Print("empty kernel, through the CUDA runtime", Measure(launches, [&](int) { kernels.Launch("Empty", 1, nullptr); }),
        "", false);
  for (const auto& [name, kernel] : {std::pair("empty kernel, 1 KiB of arguments", "Empty1"),
                                     std::pair("empty kernel, 4000 bytes of arguments", "Empty4"),
                                     std::pair("empty kernel, 6.5 KiB of arguments", "Empty6")}) {
    static unsigned char arguments[6656];
    void* parameters[] = {arguments};
    Print(name, Measure(launches, [&](int) { kernels.Launch(kernel, 1, parameters); }), "", false);
  }
  const std::vector<Case> cases = Cases();
  for (const Case& c : cases) {
    Workbench bench(c.product, kernels);
    GemmCall call = bench.call();
    const DeviceBuffer masked_m(4096);
    const DeviceBuffer rows(4096);
    Must(cudaMemset(masked_m.data(), 0x01, 4096), "rows");
    const int groups = static_cast<int>(call.segments.size());
    const ClampRowsArgs clamp = {masked_m.data(), reinterpret_cast<int*>(rows.data()), groups,
                                 static_cast<int>(c.product.m)};
    if (c.rows_on_gpu) call.group_rows = clamp.rows;
    const auto launch = [&](int i) {
      if (c.moving) Move(bench.call(), i, &call);
      absl::Status status = c.rows_on_gpu ? (*launcher)->LaunchClampRows(clamp, nullptr) : absl::OkStatus();
      status.Update((*launcher)->Launch(call, nullptr));
      if (!status.ok()) {
        std::printf("FATAL %s\n", status.ToString().c_str());
        std::_Exit(3);
      }
    };
    // Every kernel that the launches below select is ready before they are timed.
    for (int i = 0; i < launches; ++i) {
      if (c.moving) Move(bench.call(), i, &call);
      if (const auto made = (*launcher)->Prepare((*launcher)->ConfigOf(call).traits); !made.ok()) {
        std::printf("FATAL %s\n", made.status().ToString().c_str());
        return 3;
      }
      if (!c.moving) break;
    }
    const HostTimes times = Measure(launches, launch);
    Print(c.name, times, Describe((*launcher)->last_config().traits), &c == &cases.back());
  }
  std::printf("]}\n");
  return 0;
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  int launches = 4096;
  gemmd::GemmLauncher::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (absl::StartsWith(argument, "--launches=")) launches = std::max(std::atoi(argument.c_str() + 11), 1000);
    if (absl::StartsWith(argument, "--cache=")) options.cache_directory = argument.substr(8);
  }
  return gemmd::Run(launches, options);
}
