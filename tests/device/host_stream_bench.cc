// SPDX-License-Identifier: Apache-2.0
// host_stream_bench [--seconds=S] [--streams=N] [--cache=DIR]: how much of PCIe does a stream of products use whose
// rows come from the host and go back there? Drives CudaDevice as the worker does, with A, SFA and D in page-locked
// shared memory and B on the GPU, as many batches in flight as the device takes, and compares bytes per second with
// plain cudaMemcpyAsync between the same regions and the GPU: each direction alone, both at once, and both at once in
// the proportion of the products. Checks the products' results. One JSON object.
#include "gpu/cuda/cuda_device.h"
#include "gpu/cuda/cuda_memory.h"
#include "proto/shared_memory.h"
#include "tests/device/gpu_workbench.h"

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double CpuSeconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

[[noreturn]] void Die(const absl::Status& status, const char* what) {
  std::printf("FATAL %s: %s\n", what, status.ToString().c_str());
  std::fflush(stdout);
  std::_Exit(3);
}

// Shared memory that the device has mapped and page-locked, and this program sees.
struct HostRegion {
  HostRegion(Device& device, int64_t bytes) {
    UniqueFd fd = *CreateSealedMemory(static_cast<uint64_t>(bytes));
    mapping = *SharedMapping::Map(fd.get(), static_cast<uint64_t>(bytes), Access::kReadWrite);
    absl::StatusOr<std::shared_ptr<DeviceMemory>> mapped =
        device.Map({RegionKind::kHost, Access::kReadWrite, static_cast<uint64_t>(bytes)}, std::move(fd));
    if (!mapped.ok()) Die(mapped.status(), "page-locking");
    memory = *std::move(mapped);
  }
  char* address() const { return static_cast<const CudaMemory&>(*memory).address(); }

  SharedMapping mapping;
  std::shared_ptr<DeviceMemory> memory;
};

Operand Matrix(std::shared_ptr<DeviceMemory> memory, uint64_t region, DType dtype, int64_t rows, int64_t columns) {
  Operand operand;
  operand.memory = std::move(memory);
  operand.region = region;
  operand.dtype = dtype;
  operand.rank = 2;
  operand.shape = {rows, columns};
  operand.strides = {columns, 1};
  return operand;
}

// e4m3 rows of one number each, so that every element of D is known: A's row r holds Digit(r), B ones, scales 2^-3.
uint8_t Digit(int64_t row) { return static_cast<uint8_t>(0x38 + row % 8); }  // 1, 1.125, .. 1.875.
float DigitValue(int64_t row) { return 1.0f + static_cast<float>(row % 8) / 8.0f; }
constexpr float kScale = 0.125f;

// One product's memory on the host.
struct Slot {
  Slot(Device& device, int64_t m, int64_t n, int64_t k)
      : a(device, m * k), sfa(device, m * (k / 128) * 4), d(device, m * n * 2) {
    for (int64_t row = 0; row < m; ++row) {
      std::memset(a.mapping.data() + row * k, Digit(row), static_cast<size_t>(k));
    }
    std::fill_n(reinterpret_cast<float*>(sfa.mapping.data()), m * (k / 128), kScale);
    std::memset(d.mapping.data(), 0xff, static_cast<size_t>(m * n * 2));
  }
  HostRegion a, sfa, d;
};

struct Rates {
  double in = 0;   // Bytes per second to the GPU.
  double out = 0;  // And back.
};

struct Shape {
  const char* name;
  int64_t m, n, k;
  int64_t in_bytes() const { return m * k + m * (k / 128) * 4; }
  int64_t out_bytes() const { return m * n * 2; }
};

// Plain copies between the slots and the GPU, each direction in a stream of its own; bytes of 0 leave one out. Rates
// count while all directions are busy.
Rates CopyPlainly(const std::vector<std::unique_ptr<Slot>>& slots, int64_t in_bytes, int64_t out_bytes,
                  double seconds) {
  DeviceBuffer in_buffer(std::max<int64_t>(in_bytes, 1));
  DeviceBuffer out_buffer(std::max<int64_t>(out_bytes, 1));
  struct Direction {
    cudaStream_t stream = nullptr;
    std::vector<cudaEvent_t> events;
    size_t next = 0;
    int64_t copies = 0;
    int64_t waited = 0;
  };
  constexpr size_t kAhead = 8;
  const auto start = [&](Direction& direction, bool in) {
    const Slot& slot = *slots[static_cast<size_t>(direction.copies) % slots.size()];
    const size_t bytes = static_cast<size_t>(in ? in_bytes : out_bytes);
    Must(in ? cudaMemcpyAsync(in_buffer.data(), slot.a.address(), bytes, cudaMemcpyHostToDevice, direction.stream)
            : cudaMemcpyAsync(slot.d.address(), out_buffer.data(), bytes, cudaMemcpyDeviceToHost, direction.stream),
         "copying");
    Must(cudaEventRecord(direction.events[static_cast<size_t>(direction.copies) % kAhead], direction.stream), "event");
    ++direction.copies;
  };
  Direction in, out;
  for (Direction* direction : {&in, &out}) {
    Must(cudaStreamCreateWithFlags(&direction->stream, cudaStreamNonBlocking), "stream");
    direction->events.resize(kAhead);
    for (cudaEvent_t& event : direction->events)
      Must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  }
  const auto begin = Clock::now();
  double elapsed = 0;
  while ((elapsed = SecondsSince(begin)) < seconds) {
    for (Direction* direction : {&in, &out}) {
      if ((direction == &in ? in_bytes : out_bytes) == 0) continue;
      while (direction->copies - direction->waited < static_cast<int64_t>(kAhead)) start(*direction, direction == &in);
      while (direction->waited < direction->copies &&
             cudaEventQuery(direction->events[static_cast<size_t>(direction->waited) % kAhead]) == cudaSuccess) {
        ++direction->waited;
      }
    }
  }
  const Rates rates{static_cast<double>(in.waited * in_bytes) / elapsed,
                    static_cast<double>(out.waited * out_bytes) / elapsed};
  Must(cudaDeviceSynchronize(), "copying");
  for (Direction* direction : {&in, &out}) {
    for (cudaEvent_t event : direction->events) cudaEventDestroy(event);
    cudaStreamDestroy(direction->stream);
  }
  return rates;
}

// The products' own bytes per product in one stream for each slot, in and then out, without a kernel.
Rates CopyInProportion(const std::vector<std::unique_ptr<Slot>>& slots, const Shape& shape, double seconds) {
  struct Lane {
    std::unique_ptr<DeviceBuffer> in, out;
    cudaStream_t stream = nullptr;
    cudaEvent_t finished = nullptr;
  };
  std::vector<Lane> lanes(slots.size());
  for (Lane& lane : lanes) {
    lane.in = std::make_unique<DeviceBuffer>(shape.m * shape.k);
    lane.out = std::make_unique<DeviceBuffer>(shape.out_bytes());
    Must(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking), "stream");
    Must(cudaEventCreateWithFlags(&lane.finished, cudaEventDisableTiming), "event");
  }
  const auto start = [&](size_t i) {
    Lane& lane = lanes[i];
    Must(cudaMemcpyAsync(lane.in->data(), slots[i]->a.address(), static_cast<size_t>(shape.m * shape.k),
                         cudaMemcpyHostToDevice, lane.stream),
         "copying");
    Must(cudaMemcpyAsync(slots[i]->d.address(), lane.out->data(), static_cast<size_t>(shape.out_bytes()),
                         cudaMemcpyDeviceToHost, lane.stream),
         "copying");
    Must(cudaEventRecord(lane.finished, lane.stream), "event");
  };
  for (size_t i = 0; i < lanes.size(); ++i) start(i);
  int64_t done = 0;
  const auto begin = Clock::now();
  double elapsed = 0;
  while ((elapsed = SecondsSince(begin)) < seconds) {
    for (size_t i = 0; i < lanes.size(); ++i) {
      if (cudaEventQuery(lanes[i].finished) != cudaSuccess) continue;
      ++done;
      start(i);
    }
  }
  Must(cudaDeviceSynchronize(), "copying");
  for (Lane& lane : lanes) {
    cudaEventDestroy(lane.finished);
    cudaStreamDestroy(lane.stream);
  }
  return {static_cast<double>(done * shape.m * shape.k) / elapsed,
          static_cast<double>(done * shape.out_bytes()) / elapsed};
}

struct StreamOutcome {
  Rates rates;
  int64_t products = 0;
  int64_t failed = 0;
  int64_t wrong = 0;         // Elements of D.
  double submit_cpu_us = 0;  // Of the submitting thread, per product.
  double read_idle_us = 0;   // Median of a small read from GPU memory.
  double read_busy_us = 0;   // The same beside the stream.
};

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double MicrosOfRead(const DeviceMemory& memory) {
  char bytes[128];
  const auto begin = Clock::now();
  if (const absl::Status status = memory.ReadBytes(0, sizeof(bytes), bytes); !status.ok()) Die(status, "reading");
  return SecondsSince(begin) * 1e6;
}

StreamOutcome RunProducts(Device& device, const std::vector<std::unique_ptr<Slot>>& slots,
                          const std::shared_ptr<DeviceMemory>& b, const std::shared_ptr<DeviceMemory>& sfb,
                          const Shape& shape, double seconds) {
  const int64_t blocks = shape.k / 128;
  absl::Mutex mutex;
  std::vector<size_t> free;
  StreamOutcome outcome;
  for (size_t i = 0; i < slots.size(); ++i) free.push_back(i);
  const auto submit = [&] {
    size_t slot = 0;
    {
      const auto any = [&] { return !free.empty(); };
      absl::MutexLock lock(&mutex);
      mutex.Await(absl::Condition(&any));
      slot = free.back();
      free.pop_back();
    }
    const uint64_t region = 10 + slot * 3;
    Job job;
    job.gemm.op = Op::kDense;
    job.gemm.scaling = Scaling::k1D2D;
    job.gemm.m = shape.m;
    job.gemm.n = shape.n;
    job.gemm.k = shape.k;
    job.gemm.operand(OperandIndex::kA) = Matrix(slots[slot]->a.memory, region, DType::kE4m3, shape.m, shape.k);
    job.gemm.operand(OperandIndex::kSfa) = Matrix(slots[slot]->sfa.memory, region + 1, DType::kF32, shape.m, blocks);
    job.gemm.operand(OperandIndex::kB) = Matrix(b, 1, DType::kE4m3, shape.n, shape.k);
    job.gemm.operand(OperandIndex::kSfb) = Matrix(sfb, 2, DType::kF32, (shape.n + 127) / 128, blocks);
    job.gemm.operand(OperandIndex::kD) = Matrix(slots[slot]->d.memory, region + 2, DType::kBf16, shape.m, shape.n);
    Batch batch;
    batch.jobs.push_back(std::move(job));
    device.Submit(std::move(batch), [&, slot](Batch, BatchResult result) {
      absl::MutexLock lock(&mutex);
      outcome.failed += result.reasons[0].rule != Rule::kNone;
      ++outcome.products;
      free.push_back(slot);
    });
  };
  const auto products = [&] {
    absl::MutexLock lock(&mutex);
    return outcome.products;
  };
  // Warm: kernels compiled, scratch allocated.
  const auto warm = Clock::now();
  while (SecondsSince(warm) < 1.5) submit();
  const int64_t products_before = products();
  const double cpu_before = CpuSeconds(CLOCK_THREAD_CPUTIME_ID);
  const auto begin = Clock::now();
  int64_t submitted = 0;
  while (SecondsSince(begin) < seconds) submit(), ++submitted;
  const double elapsed = SecondsSince(begin);
  const double done = static_cast<double>(products() - products_before);
  outcome.submit_cpu_us = (CpuSeconds(CLOCK_THREAD_CPUTIME_ID) - cpu_before) / static_cast<double>(submitted) * 1e6;
  std::vector<double> busy, idle;
  while (busy.size() < 50) submit(), busy.push_back(MicrosOfRead(*b));
  device.Wait();
  while (idle.size() < 50) idle.push_back(MicrosOfRead(*b));
  outcome.read_busy_us = Median(busy);
  outcome.read_idle_us = Median(idle);
  outcome.rates = {done * static_cast<double>(shape.in_bytes()) / elapsed,
                   done * static_cast<double>(shape.out_bytes()) / elapsed};
  for (const auto& slot : slots) {
    const auto* d = reinterpret_cast<const uint16_t*>(slot->d.mapping.data());
    for (int64_t row = 0; row < shape.m; ++row) {
      const float expected = DigitValue(row) * static_cast<float>(shape.k) * kScale * kScale;
      for (int64_t column = 0; column < shape.n; ++column) {
        const uint32_t bits = static_cast<uint32_t>(d[row * shape.n + column]) << 16;
        float value = 0;
        std::memcpy(&value, &bits, sizeof(value));
        outcome.wrong += !(value >= expected * 0.996f && value <= expected * 1.004f);
      }
    }
  }
  return outcome;
}

// Fills memory of the GPU with copies of one host word.
std::shared_ptr<DeviceMemory> Resident(Device& device, int64_t bytes, uint32_t word) {
  absl::StatusOr<Allocation> allocation = device.Allocate(static_cast<uint64_t>(bytes));
  if (!allocation.ok()) Die(allocation.status(), "allocating B");
  const std::vector<uint32_t> host(static_cast<size_t>(bytes + 3) / 4, word);
  Must(cudaMemcpy(static_cast<const CudaMemory&>(*allocation->memory).address(), host.data(),
                  static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
       "filling B");
  return allocation->memory;
}

int Run(double seconds, const CudaDeviceOptions& options) {
  absl::StatusOr<std::unique_ptr<Device>> opened = CudaDevice::Open(options);
  if (!opened.ok()) {
    std::printf("%s\n", opened.status().ToString().c_str());
    return 77;
  }
  Device& device = **opened;
  const int in_flight = device.traits().max_batches_in_flight;
  const std::vector<Shape> shapes = {{"to the GPU", 4096, 576, 7168},
                                     {"from the GPU", 4096, 7168, 512},
                                     {"both", 4096, 3584, 7168},
                                     {"to the GPU, small", 256, 576, 7168}};
  std::printf("{\"gpu\": \"%s\", \"batches_in_flight\": %d, \"unit\": \"GB/s\", \"streams\": [\n",
              device.traits().name.c_str(), in_flight);
  bool ok = true;
  for (const Shape& shape : shapes) {
    std::vector<std::unique_ptr<Slot>> slots;
    // As many as may be in flight, and one that waits meanwhile.
    for (int i = 0; i <= in_flight; ++i) slots.push_back(std::make_unique<Slot>(device, shape.m, shape.n, shape.k));
    const auto b = Resident(device, shape.n * shape.k, 0x38383838);
    const auto sfb = Resident(device, (shape.n + 127) / 128 * (shape.k / 128) * 4, 0x3e000000);  // 0.125f
    const Rates in_alone = CopyPlainly(slots, shape.m * shape.k, 0, seconds / 2);
    const Rates out_alone = CopyPlainly(slots, 0, shape.out_bytes(), seconds / 2);
    const Rates both = CopyPlainly(slots, shape.m * shape.k, shape.out_bytes(), seconds / 2);
    const Rates proportion = CopyInProportion(slots, shape, seconds / 2);
    const StreamOutcome stream = RunProducts(device, slots, b, sfb, shape, seconds);
    const bool busier_in = shape.in_bytes() > shape.out_bytes();
    const auto busier = [&](const Rates& rates) { return (busier_in ? rates.in : rates.out); };
    std::printf(
        " {\"bound\": \"%s\", \"shape\": \"M%ld N%ld K%ld\", \"products\": %ld, \"failed\": %ld, \"wrong\": %ld,\n"
        "  \"stream\": [%.2f, %.2f], \"plain_alone\": [%.2f, %.2f], \"plain_both\": [%.2f, %.2f], "
        "\"plain_in_proportion\": [%.2f, %.2f],\n"
        "  \"busier_direction\": \"%s\", \"of_plain_both\": %.3f, \"of_plain_alone\": %.3f, "
        "\"of_plain_in_proportion\": "
        "%.3f, \"submit_cpu_us\": %.1f, \"read_idle_us\": %.1f, \"read_busy_us\": %.1f}%s\n",
        shape.name, static_cast<long>(shape.m), static_cast<long>(shape.n), static_cast<long>(shape.k),
        static_cast<long>(stream.products), static_cast<long>(stream.failed), static_cast<long>(stream.wrong),
        stream.rates.in / 1e9, stream.rates.out / 1e9, in_alone.in / 1e9, out_alone.out / 1e9, both.in / 1e9,
        both.out / 1e9, proportion.in / 1e9, proportion.out / 1e9, busier_in ? "in" : "out",
        busier(stream.rates) / busier(both), busier(stream.rates) / busier({in_alone.in, out_alone.out}),
        busier(stream.rates) / busier(proportion), stream.submit_cpu_us, stream.read_idle_us, stream.read_busy_us,
        &shape == &shapes.back() ? "" : ",");
    std::fflush(stdout);
    ok = ok && stream.failed == 0 && stream.wrong == 0;
  }
  std::printf("]}\n");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  double seconds = 1.0;
  gemmd::CudaDeviceOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (absl::StartsWith(argument, "--seconds=")) seconds = std::max(std::atof(argument.c_str() + 10), 0.1);
    if (absl::StartsWith(argument, "--streams=")) options.streams = std::max(std::atoi(argument.c_str() + 10), 1);
    if (absl::StartsWith(argument, "--cache=")) options.kernels.cache_directory = argument.substr(8);
  }
  return gemmd::Run(seconds, options);
}
