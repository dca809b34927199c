// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_device.h"

#include "gpu/cuda/cuda_memory.h"
#include "gpu/cuda/injected_fault.h"
#include "gpu/cuda_status.h"
#include "gpu/jit/nvrtc.h"

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include <algorithm>
#include <ctime>
#include <utility>

namespace gemmd {
namespace {

// Of each stream: for small products. Larger ones take much longer than an allocation.
constexpr size_t kScratchBytes = size_t{8} << 20;

// For PredictNanos: what a product and a copy reach, near enough to order queues by.
constexpr double kFlopsPerNano = 1.1e6;
constexpr double kBytesPerNano = 2600;
constexpr double kHostBytesPerNano = 22;
constexpr double kLaunchNanos = 6000;

// Of the tensor cores of one Hopper SM, without sparsity.
constexpr uint64_t kE4m3FlopsPerClock = 8192;
constexpr uint64_t kBf16FlopsPerClock = 4096;
// HBM sends on both edges of its clock.
constexpr uint64_t kTransfersPerClock = 2;

uint64_t NowNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

std::string UuidText(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    absl::StrAppend(&text, i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                    absl::StrFormat("%02x", static_cast<unsigned char>(uuid.bytes[i])));
  }
  return text;
}

absl::StatusOr<int> FindDevice(const std::string& gpu) {
  int count = 0;
  if (absl::Status status = CudaStatus(cudaGetDeviceCount(&count), "looking for GPUs"); !status.ok()) return status;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    if (gpu == absl::StrCat(device) || gpu == UuidText(properties.uuid)) return device;
  }
  return absl::FailedPreconditionError(absl::StrCat("no GPU ", gpu, " among the ", count, " of this machine"));
}

Reason ReasonOf(const absl::Status& status) {
  Reason reason = FailureReason(JobField::kDevice, status);
  const cudaError_t error = CudaErrorOf(status);
  if (reason.got != 0 && error != cudaSuccess) reason.got = error;
  return reason;
}

int64_t RowsOf(const Gemm& gemm) {
  if (gemm.segments.empty()) return gemm.m;
  int64_t rows = 0;
  for (const RowSegment& segment : gemm.segments) rows += segment.end - segment.begin;
  return rows;
}

}  // namespace

absl::StatusOr<std::vector<GpuName>> ListHopperGpus() {
  if (const auto nvrtc = Nvrtc::Load(); !nvrtc.ok()) return nvrtc.status();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("no NVIDIA GPU with a driver for CUDA 12 or newer (", cudaGetErrorName(error), ")"));
  }
  std::vector<GpuName> gpus;
  std::string others;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    if (IsHopper(properties)) {
      gpus.push_back({UuidText(properties.uuid), properties.name});
    } else {
      absl::StrAppend(&others, others.empty() ? "" : ", ", properties.name, " (", properties.major, ".",
                      properties.minor, ")");
    }
  }
  if (!gpus.empty()) return gpus;
  return absl::FailedPreconditionError(
      absl::StrCat("no Hopper GPU (compute capability 9.0) among the ", count, " of this machine: ", others));
}

CudaDevice::CudaDevice(const CudaDeviceOptions& options, int device)
    : device_(device), counters_(options.kernels.counters) {}

absl::StatusOr<std::unique_ptr<Device>> CudaDevice::Open(const CudaDeviceOptions& options) {
  absl::StatusOr<int> device = FindDevice(options.gpu);
  if (!device.ok()) return device.status();
  auto cuda = absl::WrapUnique(new CudaDevice(options, *device));
  if (absl::Status status = cuda->Start(options); !status.ok()) return status;
  return cuda;
}

absl::Status CudaDevice::Start(const CudaDeviceOptions& options) {
  if (absl::Status status = CudaStatus(cudaSetDevice(device_), "opening the GPU"); !status.ok()) return status;
  absl::StatusOr<Driver> driver = Driver::Load();
  if (!driver.ok()) return driver.status();
  driver_ = *driver;
  absl::StatusOr<std::unique_ptr<GemmLauncher>> launcher = GemmLauncher::Create(options.kernels);
  if (!launcher.ok()) return launcher.status();
  launcher_ = *std::move(launcher);
  absl::StatusOr<std::unique_ptr<GpuReader>> reader = GpuReader::Open(*launcher_, device_, [this](const auto& status) {
    CountError(status);
    if (absl::IsDataLoss(status)) NoteLoss(status);
  });
  if (!reader.ok()) return reader.status();
  reader_ = *std::move(reader);

  cudaDeviceProp properties;
  absl::Status status = CudaStatus(cudaGetDeviceProperties(&properties, device_), "reading device properties");
  cudaMemPool_t pool = nullptr;
  status.Update(CudaStatus(cudaDeviceGetDefaultMemPool(&pool, device_), "memory pool"));
  if (!status.ok()) return status;
  uint64_t keep = options.scratch_keep_bytes;
  status.Update(CudaStatus(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "memory pool"));
  // All of a batch is enqueued at once, its frees too. Memory that the pool hands on before it is free would make the
  // next batch wait for the end of this one: no copy would ever run beside a kernel.
  int reuse_after_waiting = 0;
  status.Update(CudaStatus(
      cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &reuse_after_waiting), "memory pool"));
  traits_.device = UuidText(properties.uuid);
  traits_.name = properties.name;
  traits_.memory_bytes = properties.totalGlobalMem;
  traits_.cores = static_cast<uint32_t>(properties.multiProcessorCount);
  int mps = 0;  // An older driver does not know the attribute.
  if (cudaDeviceGetAttribute(&mps, cudaDevAttrMpsEnabled, device_) != cudaSuccess) cudaGetLastError();
  traits_.mps = mps != 0;
  traits_.max_batches_in_flight = options.streams;
  status.Update(ReadPeaks());
  batches_ = std::make_unique<BatchLauncher>(*launcher_);
  for (int i = 0; i < options.streams && status.ok(); ++i) {
    lanes_.push_back(std::make_unique<Lane>());
    Lane* lane = lanes_.back().get();
    status.Update(CudaStatus(cudaStreamCreateWithFlags(&lane->work.stream, cudaStreamNonBlocking), "making a stream"));
    void* scratch = nullptr;
    status.Update(CudaStatus(cudaMalloc(&scratch, kScratchBytes), "allocating GPU memory"));
    if (scratch != nullptr) lane->work.scratch = absl::MakeSpan(static_cast<char*>(scratch), kScratchBytes);
    status.Update(CudaStatus(cudaEventCreateWithFlags(&lane->finished, cudaEventDisableTiming), "making an event"));
  }
  status.Update(launcher_->PrepareFallbacks());
  if (!status.ok()) return status;
  for (const std::unique_ptr<Lane>& lane : lanes_)
    lane->thread = std::thread([this, raw = lane.get()] { RunLane(raw); });
  return absl::OkStatus();
}

// What the clocks and widths that the driver names amount to.
absl::Status CudaDevice::ReadPeaks() {
  const auto attribute = [this](cudaDeviceAttr name, uint64_t* value) {
    int number = 0;
    const absl::Status status = CudaStatus(cudaDeviceGetAttribute(&number, name, device_), "reading device properties");
    *value = static_cast<uint64_t>(number);
    return status;
  };
  uint64_t sms = 0;
  uint64_t clock_khz = 0;
  uint64_t memory_clock_khz = 0;
  uint64_t bus_bits = 0;
  absl::Status status = attribute(cudaDevAttrMultiProcessorCount, &sms);
  status.Update(attribute(cudaDevAttrClockRate, &clock_khz));
  status.Update(attribute(cudaDevAttrMemoryClockRate, &memory_clock_khz));
  status.Update(attribute(cudaDevAttrGlobalMemoryBusWidth, &bus_bits));
  traits_.peak_flops[static_cast<size_t>(ProductType::kE4m3)] = sms * kE4m3FlopsPerClock * clock_khz * 1000;
  traits_.peak_flops[static_cast<size_t>(ProductType::kBf16)] = sms * kBf16FlopsPerClock * clock_khz * 1000;
  traits_.peak_memory_bytes = kTransfersPerClock * memory_clock_khz * 1000 * bus_bits / 8;
  return status;
}

CudaDevice::~CudaDevice() {
  Wait();
  for (const std::unique_ptr<Lane>& lane : lanes_) {
    {
      absl::MutexLock lock(&lane->mutex);
      lane->stopping = true;
    }
    if (lane->thread.joinable()) lane->thread.join();
    if (lane->finished != nullptr) cudaEventDestroy(lane->finished);
    if (lane->work.stream != nullptr) cudaStreamDestroy(lane->work.stream);
    cudaFree(lane->work.scratch.data());
  }
  reader_.reset();
  launcher_.reset();
}

absl::StatusOr<std::shared_ptr<DeviceMemory>> CudaDevice::Map(const RegionSpec& spec, UniqueFd fd) {
  cudaSetDevice(device_);
  absl::StatusOr<std::shared_ptr<DeviceMemory>> memory;
  switch (spec.kind) {
    case RegionKind::kTensor:
    case RegionKind::kPool:
    case RegionKind::kDevice:
      memory = GpuMemory::Import(driver_, *reader_, spec, std::move(fd));
      break;
    case RegionKind::kDeviceIpc:
      memory = IpcGpuMemory::Open(driver_, *reader_, spec);
      break;
    case RegionKind::kHost:
    case RegionKind::kSharedMemory:
      memory = HostMemory::Open(spec, std::move(fd));
      break;
  }
  CountError(memory.status());
  return memory;
}

absl::StatusOr<Allocation> CudaDevice::Allocate(uint64_t byte_size) {
  cudaSetDevice(device_);
  absl::StatusOr<std::shared_ptr<GpuMemory>> memory = GpuMemory::Allocate(driver_, *reader_, byte_size);
  if (absl::IsResourceExhausted(memory.status())) {
    // Scratch that no batch uses goes first.
    cudaMemPool_t pool = nullptr;
    if (cudaDeviceGetDefaultMemPool(&pool, device_) == cudaSuccess) cudaMemPoolTrimTo(pool, 0);
    memory = GpuMemory::Allocate(driver_, *reader_, byte_size);
  }
  CountError(memory.status());
  if (!memory.ok()) return memory.status();
  absl::StatusOr<UniqueFd> fd = (*memory)->Export();
  CountError(fd.status());
  if (!fd.ok()) return fd.status();
  return Allocation{*std::move(memory), *std::move(fd)};
}

absl::StatusOr<PrepareResult> CudaDevice::Prepare(const PrepareShape& shape) {
  cudaSetDevice(device_);
  PrepareResult result;
  if (shape.op == Op::kQuantize || shape.op == Op::kCopy) return PrepareResult{1, 0};  // Ready since Open.
  const std::vector<int64_t> all_m = {1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
  for (const int64_t m : shape.m > 0 ? std::vector<int64_t>{shape.m} : all_m) {
    GemmShape gemm;
    gemm.scaling = shape.scaling == Scaling::kNone   ? KernelScaling::kBf16
                   : shape.scaling == Scaling::k1D1D ? KernelScaling::kRowRow
                                                     : KernelScaling::kRowBlock;
    gemm.output = shape.accumulate               ? KernelOutput::kF32Add
                  : shape.d_dtype == DType::kF32 ? KernelOutput::kF32
                                                 : KernelOutput::kBf16;
    gemm.grouping = shape.op == Op::kDense      ? Grouping::kDense
                    : shape.op == Op::kKGrouped ? Grouping::kDepth
                                                : Grouping::kRows;
    gemm.n = shape.n;
    const int64_t groups = std::max<int64_t>(shape.op == Op::kDense ? 1 : shape.groups, 1);
    gemm.k = shape.op == Op::kKGrouped ? (shape.k + groups - 1) / groups : shape.k;
    // m rows in all are spread over the groups of a contiguous product; the others have m each.
    const int64_t rows = shape.op == Op::kMGroupedContiguous ? std::max<int64_t>(m / groups, 1) : m;
    gemm.rows.assign(static_cast<size_t>(groups), rows);
    absl::StatusOr<bool> made = launcher_->Prepare(SelectConfig(gemm, launcher_->sms()).traits);
    CountError(made.status());
    if (!made.ok()) return made.status();
    ++result.kernels_ready;
    result.kernels_compiled += *made;
  }
  return result;
}

CudaDevice::Lane* CudaDevice::TakeLane() {
  absl::MutexLock lock(&mutex_);
  Lane* free = nullptr;
  const auto find = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const std::unique_ptr<Lane>& lane : lanes_) {
      if (!lane->busy) free = lane.get();
    }
    return free != nullptr;
  };
  mutex_.Await(absl::Condition(&find));
  free->busy = true;
  ++unfinished_;
  return free;
}

void CudaDevice::Submit(Batch batch, BatchDone done) {
  Lane* lane = TakeLane();
  cudaSetDevice(device_);
  const NvtxDomain::Range range = nvtx_.Begin(batch);
  BatchResult result;
  result.launched_ns = NowNanos();
  if (next_fault_) LaunchFault(*std::exchange(next_fault_, std::nullopt), lane->work.stream).IgnoreError();
  absl::Status counted;  // Jobs that shared a launch share its error.
  for (const absl::Status& status : batches_->Launch(batch, lane->work, lane->counted)) {
    if (status != counted) CountError(status);
    counted = status;
    if (absl::IsDataLoss(status)) NoteLoss(status);
    result.reasons.push_back(ReasonOf(status));
  }
  const cudaError_t error = cudaEventRecord(lane->finished, lane->work.stream);
  if (error != cudaSuccess) NoteFailure(error);
  absl::MutexLock lock(&lane->mutex);
  lane->batch = std::move(batch);
  lane->done = std::move(done);
  lane->result = std::move(result);
  lane->started = true;
}

void CudaDevice::RunLane(Lane* lane) {
  cudaSetDevice(device_);
  const auto ready = [lane]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lane->mutex) { return lane->started || lane->stopping; };
  while (true) {
    Batch batch;
    BatchDone done;
    BatchResult result;
    {
      absl::MutexLock lock(&lane->mutex);
      lane->mutex.Await(absl::Condition(&ready));
      if (!lane->started) return;
      lane->started = false;
      batch = std::move(lane->batch);
      done = std::move(lane->done);
      result = std::move(lane->result);
    }
    const cudaError_t error = cudaEventSynchronize(lane->finished);
    if (error != cudaSuccess) {
      NoteFailure(error);
      const Rule rule = IsSticky(error) ? Rule::kDeviceLost : Rule::kDeviceFailed;
      for (Reason& reason : result.reasons) reason = {JobField::kDevice, rule, {}, 0, 0, error};
    }
    result.finished_ns = NowNanos();
    lane->counted.ApplyTo(batch, error == cudaSuccess);
    {
      // Before `done`, which may submit the next batch.
      absl::MutexLock lock(&mutex_);
      lane->busy = false;
    }
    done(std::move(batch), std::move(result));
    absl::MutexLock lock(&mutex_);
    --unfinished_;
  }
}

void CudaDevice::CountError(const absl::Status& status) const { CountError(CudaErrorOf(status)); }

void CudaDevice::CountError(cudaError_t error) const {
  if (error == cudaSuccess || counters_ == nullptr) return;
  Count(counters_->counts().device_errors[static_cast<size_t>(ErrorClassOf(error))][IsSticky(error) ? 1 : 0]);
}

void CudaDevice::NoteFailure(cudaError_t error) {
  CountError(error);
  if (IsSticky(error)) NoteLoss(CudaStatus(error, "running a batch"));
}

void CudaDevice::NoteLoss(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (health_.ok()) health_ = status;
  lost_.store(true, std::memory_order_release);
}

void CudaDevice::Wait() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int* unfinished) { return *unfinished == 0; }, &unfinished_));
}

absl::Status CudaDevice::Healthy() const {
  if (!lost_.load(std::memory_order_acquire)) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  return health_;
}

uint64_t CudaDevice::PredictNanos(const Gemm& gemm) const {
  double gpu_bytes = 0;
  double host_bytes = 0;
  for (const Operand& operand : gemm.operands) {
    if (!operand.present()) continue;
    double bytes = static_cast<double>(ByteSize(operand.dtype));
    for (int i = 0; i < operand.rank; ++i) bytes *= static_cast<double>(operand.shape[static_cast<size_t>(i)]);
    (static_cast<const CudaMemory&>(*operand.memory).on_device() ? gpu_bytes : host_bytes) += bytes;
  }
  const double flops =
      gemm.n == 0 ? 0
                  : 2.0 * static_cast<double>(RowsOf(gemm)) * static_cast<double>(gemm.n) * static_cast<double>(gemm.k);
  return static_cast<uint64_t>(kLaunchNanos + std::max(flops / kFlopsPerNano, gpu_bytes / kBytesPerNano) +
                               host_bytes / kHostBytesPerNano);
}

}  // namespace gemmd
