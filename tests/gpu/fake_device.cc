// SPDX-License-Identifier: Apache-2.0
#include "tests/gpu/fake_device.h"

#include "proto/job_ring.h"
#include "tests/gpu/fake_cuda.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace gemmd::testing {
namespace {

constexpr int kCrashExitStatus = 66;

// Reached with pread and pwrite, so that sealed and unsealed memory are the same to it.
class FileMemory : public DeviceMemory {
 public:
  // The region begins at `start` of the file.
  FileMemory(UniqueFd fd, uint64_t byte_size, uint64_t start = 0)
      : fd_(std::move(fd)), byte_size_(byte_size), start_(start) {}
  uint64_t byte_size() const override { return byte_size_; }
  absl::Status ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const override {
    const ssize_t got = pread(fd_.get(), destination, byte_size, static_cast<off_t>(start_ + offset));
    if (got == static_cast<ssize_t>(byte_size)) return absl::OkStatus();
    return absl::OutOfRangeError("memory object is smaller than it was registered");
  }
  bool WriteBytes(uint64_t offset, const std::vector<char>& bytes) const {
    return pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(start_ + offset)) ==
           static_cast<ssize_t>(bytes.size());
  }

 private:
  const UniqueFd fd_;
  const uint64_t byte_size_;
  const uint64_t start_;
};

absl::StatusOr<std::shared_ptr<DeviceMemory>> OpenIpc(const RegionSpec& spec) {
  if (absl::Status status = CheckOwner(spec.ipc); !status.ok()) return status;
  FakeIpcHandle handle;
  std::memcpy(&handle, spec.ipc.handle, sizeof(handle));
  UniqueFd fd(open(absl::StrCat("/proc/", handle.pid, "/fd/", handle.fd).c_str(), O_RDWR | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_ino != handle.inode) {
    return absl::InvalidArgumentError("ipc.handle: not one of the fake driver");
  }
  if (static_cast<uint64_t>(status.st_size) != spec.ipc.allocation_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("ipc.allocation_bytes: expected ", status.st_size, ", got ", spec.ipc.allocation_bytes));
  }
  return std::make_shared<FileMemory>(std::move(fd), spec.byte_size, spec.ipc.offset);
}

void Fill(const Operand& operand, int value) {
  const auto* file = dynamic_cast<const FileMemory*>(operand.memory.get());
  if (file == nullptr) return;
  const auto rank = static_cast<size_t>(operand.rank);
  const auto element = static_cast<uint64_t>(ByteSize(operand.dtype));
  std::array<int64_t, kMaxRank> shape{1, 1, 1};
  std::array<int64_t, kMaxRank> strides{};
  for (size_t i = 0; i < rank; ++i) {
    shape[kMaxRank - rank + i] = operand.shape[i];
    strides[kMaxRank - rank + i] = operand.strides[i];
  }
  const std::vector<char> row(static_cast<size_t>(shape[2]) * element, static_cast<char>(value));
  for (int64_t i = 0; i < shape[0]; ++i) {
    for (int64_t j = 0; j < shape[1]; ++j) {
      file->WriteBytes(operand.offset + static_cast<uint64_t>(i * strides[0] + j * strides[1]) * element, row);
    }
  }
}

bool Copy(const Operand& from, const Operand& to) {
  const auto* file = dynamic_cast<const FileMemory*>(to.memory.get());
  std::vector<char> bytes(static_cast<size_t>(from.shape[0]));
  return file != nullptr && from.memory->ReadBytes(from.offset, bytes.size(), bytes.data()).ok() &&
         file->WriteBytes(to.offset, bytes);
}

}  // namespace

absl::Status HeapMemory::ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const {
  if (offset > bytes_.size() || byte_size > bytes_.size() - offset) return absl::OutOfRangeError("outside");
  std::memcpy(destination, bytes_.data() + offset, byte_size);
  return absl::OkStatus();
}

FakeDevice::FakeDevice(FakeScript script) : script_(std::move(script)) {
  traits_.device = script_.device;
  traits_.name = "fake";
  traits_.memory_bytes = uint64_t{1} << 32;
  traits_.cores = 1;
  traits_.max_batches_in_flight = script_.max_batches_in_flight;
  const bool has_thread =
      !script_.manual && (script_.delay_ns > 0 || script_.hang_after_jobs > 0 || !script_.hold_file.empty());
  if (has_thread) thread_ = std::thread([this] { Run(); });
}

FakeDevice::~FakeDevice() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<std::shared_ptr<DeviceMemory>> FakeDevice::Map(const RegionSpec& spec, UniqueFd fd) {
  if (spec.kind == RegionKind::kDeviceIpc) return OpenIpc(spec);
  // Of the fake driver: a memfd that it resizes.
  struct stat status {};
  if (spec.kind == RegionKind::kDevice && (fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) ||
                                           static_cast<uint64_t>(status.st_size) < spec.byte_size)) {
    return absl::InvalidArgumentError("descriptor: expected one of an allocation of the fake driver");
  }
  const bool sealed = spec.kind != RegionKind::kSharedMemory && spec.kind != RegionKind::kDevice;
  if (sealed) {
    if (absl::Status status = CheckSealedMemory(fd.get(), spec.byte_size); !status.ok()) return status;
  }
  return std::make_shared<FileMemory>(std::move(fd), spec.byte_size);
}

absl::StatusOr<Allocation> FakeDevice::Allocate(uint64_t byte_size) {
  absl::StatusOr<UniqueFd> fd = CreateSealedMemory(byte_size);
  if (!fd.ok()) return fd.status();
  UniqueFd kept = fd->Duplicate();
  return Allocation{std::make_shared<FileMemory>(*std::move(fd), byte_size), std::move(kept)};
}

absl::StatusOr<PrepareResult> FakeDevice::Prepare(const PrepareShape& shape) {
  if (script_.refuse_prepare) return absl::UnimplementedError("scripted");
  if (script_.prepare_gate != nullptr) script_.prepare_gate->WaitForNotification();
  absl::SleepFor(absl::Nanoseconds(script_.prepare_delay_ns));
  if (!script_.prepare_log.empty()) {
    std::ofstream(script_.prepare_log, std::ios::app)
        << Name(shape.op) << " " << shape.m << " " << shape.n << " " << shape.k << " " << shape.groups << "\n";
  }
  return PrepareResult{1, 0};
}

void FakeDevice::Submit(Batch batch, BatchDone done) {
  Submitted submitted{std::move(batch), std::move(done), MonotonicNanos()};
  {
    absl::MutexLock lock(&mutex_);
    ++submitted_;
    ++unanswered_;
    const uint64_t last_job = executed_jobs_ + submitted.batch.jobs.size();
    submitted.hangs = script_.hang_after_jobs != 0 && last_job >= script_.hang_after_jobs;
    if (script_.manual || thread_.joinable()) {
      queue_.push_back(std::move(submitted));
      return;
    }
  }
  Answer(std::move(submitted));
}

void FakeDevice::Wait() {
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return unanswered_ == 0; };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&idle));
}

uint64_t FakeDevice::PredictNanos(const Gemm&) const { return script_.predict_ns; }

absl::Status FakeDevice::Healthy() const {
  absl::MutexLock lock(&mutex_);
  return faulted_ ? absl::InternalError("scripted fault") : absl::OkStatus();
}

size_t FakeDevice::FinishOne() {
  Submitted submitted;
  {
    const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !queue_.empty(); };
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&some));
    submitted = std::move(queue_.front());
    queue_.pop_front();
  }
  const size_t jobs = submitted.batch.jobs.size();
  Answer(std::move(submitted));
  return jobs;
}

void FakeDevice::Break() {
  absl::MutexLock lock(&mutex_);
  faulted_ = true;
}

void FakeDevice::AwaitSubmitted(uint64_t batches) {
  const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return submitted_ >= batches; };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&reached));
}

void FakeDevice::Run() {
  const auto awake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || (!queue_.empty() && !queue_.front().hangs);
  };
  while (true) {
    Submitted submitted;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&awake));
      if (stopping_) return;
      submitted = std::move(queue_.front());
      queue_.pop_front();
    }
    absl::SleepFor(absl::Nanoseconds(script_.delay_ns));
    AwaitRelease();
    Answer(std::move(submitted));
  }
}

void FakeDevice::AwaitRelease() const {
  if (script_.hold_file.empty()) return;
  const auto stopping = [this] {
    absl::MutexLock lock(&mutex_);
    return stopping_;
  };
  if (access(script_.hold_file.c_str(), F_OK) == 0) std::ofstream(script_.hold_file + ".held").close();
  while (!stopping() && access(script_.hold_file.c_str(), F_OK) == 0) absl::SleepFor(absl::Milliseconds(1));
}

void FakeDevice::Answer(Submitted submitted) {
  BatchResult result;
  for (const Job& job : submitted.batch.jobs) result.reasons.push_back(Execute(job));
  result.launched_ns = submitted.launched_ns;
  result.finished_ns = MonotonicNanos();
  submitted.done(std::move(submitted.batch), std::move(result));
  absl::MutexLock lock(&mutex_);
  --unanswered_;
}

Reason FakeDevice::Execute(const Job& job) {
  const Reason failure{.field = JobField::kDevice, .rule = Rule::kDeviceFailed, .got = 1};
  {
    absl::MutexLock lock(&mutex_);
    ++executed_jobs_;
    if (script_.exit_after_jobs != 0 && executed_jobs_ >= script_.exit_after_jobs) _exit(kCrashExitStatus);
    faulted_ = faulted_ || (script_.fault_after_jobs != 0 && executed_jobs_ >= script_.fault_after_jobs);
    if (faulted_) return failure;
    if (script_.fail_every != 0 && executed_jobs_ % script_.fail_every == 0) return failure;
  }
  const Operand& d = job.gemm.operand(OperandIndex::kD);
  if (job.gemm.op == Op::kCopy) return Copy(job.gemm.operand(OperandIndex::kA), d) ? Reason{} : failure;
  if (script_.fill >= 0) Fill(d, script_.fill);
  return {};
}

}  // namespace gemmd::testing
