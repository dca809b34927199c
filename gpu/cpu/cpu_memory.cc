// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/cpu_memory.h"

#include "absl/strings/str_cat.h"

#include <cerrno>
#include <cstring>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

absl::Status Shrank() {
  return absl::OutOfRangeError("region: the shared-memory object became smaller than it was registered");
}

absl::StatusOr<uint64_t> FileBytes(int fd) {
  struct stat status {};
  if (fstat(fd, &status) != 0) return absl::ErrnoToStatus(errno, "descriptor: fstat");
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError("descriptor: expected shared memory, got another type of file");
  }
  return static_cast<uint64_t>(status.st_size);
}

absl::StatusOr<SharedMapping> MapSealed(const RegionSpec& spec, int fd) {
  if (absl::Status status = CheckSealedMemory(fd, spec.byte_size); !status.ok()) return status;
  absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(fd, spec.byte_size, spec.access);
  if (mapping.ok() || absl::IsResourceExhausted(mapping.status())) return mapping;
  if (errno == ENOMEM) return absl::ResourceExhaustedError(mapping.status().message());
  // The descriptor does not allow the access that was asked for.
  return absl::InvalidArgumentError(mapping.status().message());
}

}  // namespace

CpuMemory::CpuMemory(uint64_t byte_size, SharedMapping mapping, UniqueFd fd)
    : byte_size_(byte_size), mapping_(std::move(mapping)), fd_(std::move(fd)) {}

absl::StatusOr<std::shared_ptr<CpuMemory>> CpuMemory::Open(const RegionSpec& spec, UniqueFd fd) {
  if (spec.byte_size == 0) return absl::InvalidArgumentError("region: expected at least 1 byte, got 0");
  if (OnGpu(spec.kind)) {
    return absl::InvalidArgumentError(
        absl::StrCat("region: expected memory of the host, got kind ", Name(spec.kind), " on the CPU device"));
  }
  if (spec.kind != RegionKind::kSharedMemory) {
    absl::StatusOr<SharedMapping> mapping = MapSealed(spec, fd.get());
    if (!mapping.ok()) return mapping.status();
    return std::shared_ptr<CpuMemory>(new CpuMemory(spec.byte_size, *std::move(mapping), UniqueFd()));
  }
  const absl::StatusOr<uint64_t> file_bytes = FileBytes(fd.get());
  if (!file_bytes.ok()) return file_bytes.status();
  if (*file_bytes < spec.byte_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor: expected at least ", spec.byte_size, " bytes, got ", *file_bytes));
  }
  return std::shared_ptr<CpuMemory>(new CpuMemory(spec.byte_size, SharedMapping(), std::move(fd)));
}

absl::Status CpuMemory::ReadBytes(uint64_t offset, uint64_t byte_size, void* destination) const {
  if (byte_size > byte_size_ || offset > byte_size_ - byte_size) {
    return absl::OutOfRangeError(absl::StrCat("region: expected at most ", byte_size_, " bytes"));
  }
  if (data() != nullptr) {
    std::memcpy(destination, data() + offset, byte_size);
    return absl::OkStatus();
  }
  auto* out = static_cast<std::byte*>(destination);
  while (byte_size > 0) {
    const ssize_t count = pread(fd_.get(), out, byte_size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "region: pread");
    if (count == 0) return Shrank();
    out += count;
    offset += static_cast<uint64_t>(count);
    byte_size -= static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::Status CpuMemory::WriteBytes(uint64_t offset, uint64_t byte_size, const void* source) {
  if (byte_size > byte_size_ || offset > byte_size_ - byte_size) {
    return absl::OutOfRangeError(absl::StrCat("region: expected at most ", byte_size_, " bytes"));
  }
  if (data() != nullptr) {
    std::memcpy(data() + offset, source, byte_size);
    return absl::OkStatus();
  }
  const absl::StatusOr<uint64_t> file_bytes = FileBytes(fd_.get());
  if (!file_bytes.ok()) return file_bytes.status();
  // A write beyond the end would make the object longer. (If its owner truncates it right now, it does; that harms
  // nobody but the owner.)
  if (*file_bytes < offset + byte_size) return Shrank();
  const auto* in = static_cast<const std::byte*>(source);
  while (byte_size > 0) {
    const ssize_t count = pwrite(fd_.get(), in, byte_size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "region: pwrite");
    if (count == 0) return Shrank();
    in += count;
    offset += static_cast<uint64_t>(count);
    byte_size -= static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace gemmd
