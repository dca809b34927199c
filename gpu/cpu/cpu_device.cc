// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/cpu_device.h"

#include "gpu/cpu/cpu_memory.h"
#include "proto/cores.h"
#include "proto/job.h"

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <fcntl.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

// The cost model's constants, for any processor of the last years; the rate of products is measured.
constexpr double kFixedNanos = 3'000;       // Planning, and completing, a batch.
constexpr double kElementsPerNano = 1.0;    // Dequantized or quantized by one thread.
constexpr double kBytesPerNano = 4.0;       // Copied by one thread.
constexpr double kLeastFlopsPerNano = 0.5;  // Bounds of the measurement, should the machine be busy just then.
constexpr double kMostFlopsPerNano = 1'000.0;

// Rows of A that a job computes, and how many matrices B they use.
struct Extent {
  int64_t rows = 0;
  int64_t weights = 0;
};

Extent ExtentOf(const Gemm& gemm) {
  if (gemm.op == Op::kDense || gemm.op == Op::kKGrouped) return {gemm.m, 1};
  Extent extent;
  for (const RowSegment& segment : gemm.segments) extent.rows += segment.end - segment.begin;
  extent.weights = static_cast<int64_t>(gemm.segments.size());
  return extent;
}

double Product(int64_t x, int64_t y) { return static_cast<double>(x) * static_cast<double>(y); }

// Nanoseconds of one thread.
double SerialNanos(const Gemm& gemm, double flops_per_ns) {
  if (gemm.op == Op::kCopy) return Product(gemm.k, 1) / kBytesPerNano;
  if (gemm.op == Op::kQuantize || gemm.op == Op::kTranspose) return Product(gemm.m, gemm.k) / kElementsPerNano;
  const Extent extent = ExtentOf(gemm);
  const double elements =
      Product(extent.rows, gemm.k) + Product(extent.weights * gemm.n, gemm.k) + Product(extent.rows, gemm.n);
  const double flops = 2 * Product(extent.rows, gemm.n) * static_cast<double>(gemm.k);
  return flops / flops_per_ns + elements / kElementsPerNano;
}

// The best of a few products on this thread; takes a few milliseconds.
double MeasureFlopsPerNano() {
  constexpr int kRows = 256;
  constexpr int kDepth = 512;
  constexpr int kRounds = 3;
  const std::vector<float> operand(static_cast<size_t>(kRows) * kDepth, 1.0f);
  std::vector<float> sums(static_cast<size_t>(kRows) * kRows);
  double best = kLeastFlopsPerNano;
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kRows, kRows, kDepth, 1.0f, operand.data(), kDepth,
                operand.data(), kDepth, 0.0f, sums.data(), kRows);
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 2.0 * kRows * kRows * kDepth / taken.count());
  }
  return std::min(best, kMostFlopsPerNano);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CpuDevice::Open(const CpuDeviceOptions& options) {
  // Our own threads call BLAS, each for its tile; BLAS must start none.
  openblas_set_num_threads(1);
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  DeviceTraits traits;
  traits.device = kCpuDevice;
  traits.name = ProcessorName();
  traits.memory_bytes = UsableMemoryBytes();
  traits.cores = static_cast<uint32_t>(threads);
  const double flops_per_ns = MeasureFlopsPerNano();
  // All types are multiplied as FP32. What the memory delivers is not measured.
  traits.peak_flops.fill(static_cast<uint64_t>(flops_per_ns * 1e9 * threads));
  auto device = absl::WrapUnique(new CpuDevice(options, threads, std::move(traits)));
  if (!device->runner_.Allocate()) {
    return absl::ResourceExhaustedError(absl::StrCat("CPU device: no memory for the scratch of ", threads, " threads"));
  }
  device->flops_per_ns_ = flops_per_ns;
  device->thread_ = std::thread([raw = device.get()] { raw->RunSubmitted(); });
  return device;
}

CpuDevice::CpuDevice(const CpuDeviceOptions& options, int threads, DeviceTraits traits)
    : small_batch_ns_(options.small_batch_ns),
      traits_(std::move(traits)),
      pool_(threads),
      runner_(BestInstructionSet(), threads,
              options.scratch_limit_bytes > 0 ? options.scratch_limit_bytes : traits_.memory_bytes / 2) {}

CpuDevice::~CpuDevice() {
  Wait();
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<std::shared_ptr<DeviceMemory>> CpuDevice::Map(const RegionSpec& spec, UniqueFd fd) {
  return CpuMemory::Open(spec, std::move(fd));
}

absl::StatusOr<Allocation> CpuDevice::Allocate(uint64_t byte_size) {
  if (byte_size > traits_.memory_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tensor: expected at most ", traits_.memory_bytes, " bytes, got ", byte_size));
  }
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(byte_size);
  if (!fd.ok()) return fd.status();
  // Take the pages now: a write to a mapping for which there is no page left is fatal, this is an error.
  if (posix_fallocate(fd->get(), 0, static_cast<off_t>(byte_size)) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("tensor: no memory for ", byte_size, " bytes"));
  }
  UniqueFd keeper = fd->Duplicate();
  if (!keeper.valid()) return absl::ResourceExhaustedError("tensor: no descriptor left");
  auto memory = CpuMemory::Open({RegionKind::kTensor, Access::kReadWrite, byte_size}, *std::move(fd));
  if (!memory.ok()) return memory.status();
  return Allocation{*std::move(memory), std::move(keeper)};
}

absl::StatusOr<PrepareResult> CpuDevice::Prepare(const PrepareShape& /*shape*/) {
  return PrepareResult{.kernels_ready = 1, .kernels_compiled = 0};
}

void CpuDevice::Submit(Batch batch, BatchDone done) {
  double serial_ns = kFixedNanos;
  for (const Job& job : batch.jobs) serial_ns += SerialNanos(job.gemm, flops_per_ns_);
  bool run_here = serial_ns < static_cast<double>(small_batch_ns_);
  {
    absl::MutexLock lock(&mutex_);
    run_here = run_here && submitted_.empty();
    if (!run_here) {
      submitted_.push_back({std::move(batch), std::move(done)});
      ++unfinished_;
      return;
    }
  }
  BatchResult result = runner_.Run(batch, nullptr);
  done(std::move(batch), std::move(result));
}

void CpuDevice::Wait() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int* unfinished) { return *unfinished == 0; }, &unfinished_));
}

uint64_t CpuDevice::PredictNanos(const Gemm& gemm) const {
  const double serial_ns = kFixedNanos + SerialNanos(gemm, flops_per_ns_);
  if (serial_ns < static_cast<double>(small_batch_ns_)) return static_cast<uint64_t>(serial_ns);
  return static_cast<uint64_t>(kFixedNanos + serial_ns / static_cast<double>(traits_.cores));
}

void CpuDevice::RunSubmitted() {
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !submitted_.empty(); };
  while (true) {
    Submitted current;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&has_work));
      if (submitted_.empty()) return;
      current = std::move(submitted_.front());
    }
    BatchResult result = runner_.Run(current.batch, &pool_);
    {
      // Before `done`, so that a small batch which follows at once finds the runner free.
      absl::MutexLock lock(&mutex_);
      submitted_.pop_front();
    }
    current.done(std::move(current.batch), std::move(result));
    absl::MutexLock lock(&mutex_);
    --unfinished_;
  }
}

}  // namespace gemmd
