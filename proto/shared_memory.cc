// SPDX-License-Identifier: Apache-2.0
#include "proto/shared_memory.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include <cerrno>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

constexpr int kRequiredSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

}  // namespace

absl::StatusOr<UniqueFd> CreateSealedMemory(uint64_t byte_size) {
  if (byte_size == 0) return absl::InvalidArgumentError("shared memory: expected at least 1 byte, got 0");
  UniqueFd fd(memfd_create("gemmd", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(byte_size)) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("shared memory: cannot have ", byte_size, " bytes"));
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kRequiredSeals) != 0) return absl::ErrnoToStatus(errno, "F_ADD_SEALS");
  return fd;
}

absl::Status CheckSealedMemory(int fd, uint64_t byte_size) {
  struct stat status {};
  if (fstat(fd, &status) != 0) return absl::InvalidArgumentError("descriptor: expected an open memfd, got none");
  const int seals = fcntl(fd, F_GET_SEALS);
  if (!S_ISREG(status.st_mode) || seals < 0) {
    return absl::InvalidArgumentError("descriptor: expected a memfd, got another type of file");
  }
  // A hole in huge pages can only be filled while the pool has some, else it raises SIGBUS, whatever the seals.
  struct statfs filesystem {};
  if (fstatfs(fd, &filesystem) != 0 || filesystem.f_type == HUGETLBFS_MAGIC) {
    return absl::InvalidArgumentError("descriptor: expected a memfd of ordinary pages, got huge pages");
  }
  if ((seals & kRequiredSeals) != kRequiredSeals) {
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor: expected a memfd with F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL (", kRequiredSeals,
                     "), got seals ", seals));
  }
  if (static_cast<uint64_t>(status.st_size) < byte_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("descriptor: expected at least ", byte_size, " bytes, got ", status.st_size));
  }
  return absl::OkStatus();
}

absl::StatusOr<SharedMapping> SharedMapping::Map(int fd, uint64_t byte_size, Access access) {
  const int protection = access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void* address = mmap(nullptr, byte_size, protection, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("mmap of ", byte_size, " bytes"));
  SharedMapping mapping;
  mapping.data_ = static_cast<std::byte*>(address);
  mapping.byte_size_ = byte_size;
  return mapping;
}

SharedMapping::SharedMapping(SharedMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), byte_size_(std::exchange(other.byte_size_, 0)) {}

SharedMapping& SharedMapping::operator=(SharedMapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(byte_size_, other.byte_size_);
  return *this;
}

SharedMapping::~SharedMapping() {
  if (data_ != nullptr) munmap(data_, byte_size_);
}

}  // namespace gemmd
