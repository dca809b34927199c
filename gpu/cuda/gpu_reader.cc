// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/gpu_reader.h"

#include "gpu/cuda_status.h"

#include "absl/memory/memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace gemmd {
namespace {

constexpr uint64_t kBufferBytes = uint64_t{256} << 10;  // 65536 values of 4 bytes; longer arrays take several reads.
constexpr uint64_t kWordBytes = 4;

}  // namespace

GpuReader::GpuReader(GemmLauncher& launcher, int device, std::function<void(const absl::Status&)> failed)
    : launcher_(launcher), device_(device), failed_(std::move(failed)) {}

absl::StatusOr<std::unique_ptr<GpuReader>> GpuReader::Open(GemmLauncher& launcher, int device,
                                                           std::function<void(const absl::Status&)> failed) {
  auto reader = absl::WrapUnique(new GpuReader(launcher, device, std::move(failed)));
  absl::Status status = CudaStatus(cudaSetDevice(device), "opening the GPU");
  int lowest_priority = 0, highest_priority = 0;
  status.Update(CudaStatus(cudaDeviceGetStreamPriorityRange(&lowest_priority, &highest_priority), "making a stream"));
  status.Update(CudaStatus(cudaStreamCreateWithPriority(&reader->stream_, cudaStreamNonBlocking, highest_priority),
                           "making a stream"));
  void* buffer = nullptr;
  status.Update(CudaStatus(cudaHostAlloc(&buffer, kBufferBytes, cudaHostAllocMapped), "allocating page-locked memory"));
  reader->buffer_ = static_cast<char*>(buffer);
  if (!status.ok()) return status;
  return reader;
}

GpuReader::~GpuReader() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (buffer_ != nullptr) cudaFreeHost(buffer_);
}

absl::Status GpuReader::Read(const char* from, uint64_t byte_size, void* to) {
  char* out = static_cast<char*>(to);
  while (byte_size > 0) {
    // All of the words that the bytes are part of. Memory of the GPU comes in whole ones.
    const uint64_t before = reinterpret_cast<uintptr_t>(from) % kWordBytes;
    const uint64_t bytes = std::min(byte_size, kBufferBytes - before);
    const absl::Status status = ReadWords(from - before, (before + bytes + kWordBytes - 1) / kWordBytes);
    if (!status.ok()) {
      failed_(status);
      return status;
    }
    std::memcpy(out, buffer_ + before, bytes);
    from += bytes;
    out += bytes;
    byte_size -= bytes;
  }
  return absl::OkStatus();
}

absl::Status GpuReader::ReadWords(const char* from, uint64_t words) {
  constexpr char kReading[] = "reading GPU memory";
  if (absl::Status status = CudaStatus(cudaSetDevice(device_), kReading); !status.ok()) return status;
  const CopyWordsArgs args = {from, buffer_, static_cast<int>(words)};
  if (absl::Status status = launcher_.LaunchCopyWords(args, stream_); !status.ok()) return status;
  return CudaStatus(cudaStreamSynchronize(stream_), kReading);
}

}  // namespace gemmd
