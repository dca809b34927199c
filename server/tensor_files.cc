// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_files.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

constexpr char kField[] = "file.path";

absl::Status NoSuchFile() {
  return absl::NotFoundError(
      absl::StrCat(kField, ": expected a regular file below --tensor_dirs that gemmd may read, found none"));
}

absl::Status WithFile(const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("file: ", status.message()));
}

// Names a file without opening it, or does not if the way there leaves the directory.
UniqueFd ResolveBeneath(int directory, const char* path) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  for (;;) {
    const long fd = syscall(SYS_openat2, directory, path, &how, sizeof(how));
    if (fd >= 0) return UniqueFd(static_cast<int>(fd));
    // The kernel could not rule out that something on the way was moved meanwhile.
    if (errno != EAGAIN && errno != EINTR) return UniqueFd();
  }
}

// Only now that it is known to be a regular file: opening a device or a pipe has effects of its own.
absl::StatusOr<TensorFile> OpenRegular(const UniqueFd& named) {
  struct stat found {};
  if (fstat(named.get(), &found) != 0 || !S_ISREG(found.st_mode)) return NoSuchFile();
  UniqueFd fd(open(absl::StrCat("/proc/self/fd/", named.get()).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return NoSuchFile();
  return TensorFile(std::move(fd), static_cast<uint64_t>(found.st_size));
}

}  // namespace

absl::StatusOr<SafetensorsEntry> TensorFile::Find(absl::string_view name) const {
  std::string start(std::min<uint64_t>(kSafetensorsLengthBytes, byte_size_), '\0');
  if (absl::Status status = Read(0, {reinterpret_cast<std::byte*>(start.data()), start.size()}); !status.ok()) {
    return status;
  }
  const absl::StatusOr<uint64_t> length = SafetensorsHeaderBytes(start, byte_size_, kMaxServedHeader);
  if (!length.ok()) return WithFile(length.status());
  std::string header(*length, '\0');
  absl::Status status = Read(kSafetensorsLengthBytes, {reinterpret_cast<std::byte*>(header.data()), header.size()});
  if (!status.ok()) return status;
  const absl::StatusOr<std::vector<SafetensorsEntry>> entries = ParseSafetensorsHeader(header, byte_size_);
  if (!entries.ok()) return WithFile(entries.status());
  absl::StatusOr<SafetensorsEntry> entry = FindSafetensors(*entries, name);
  if (!entry.ok()) return absl::Status(entry.status().code(), absl::StrCat("file.tensor: ", entry.status().message()));
  return entry;
}

absl::Status TensorFile::Read(uint64_t offset, absl::Span<std::byte> destination) const {
  while (!destination.empty()) {
    const ssize_t count = pread(fd_.get(), destination.data(), destination.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::DataLossError(absl::StrCat("file: cannot be read: ", std::strerror(errno)));
    if (count == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("file: expected ", destination.size(), " more bytes, got the end of the file"));
    }
    offset += static_cast<uint64_t>(count);
    destination.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorFiles> TensorFiles::Open(absl::Span<const std::string> directories) {
  TensorFiles files;
  for (const std::string& directory : directories) {
    UniqueFd fd(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.valid()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--tensor_dirs: ", directory, ": expected a directory that can be read, got ", std::strerror(errno)));
    }
    if (!ResolveBeneath(fd.get(), ".").valid()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--tensor_dirs: expected a system with openat2 (Linux 5.6 or newer), got ", std::strerror(errno)));
    }
    files.directories_.push_back(std::move(fd));
  }
  return files;
}

absl::StatusOr<TensorFile> TensorFiles::OpenFile(const std::string& path) const {
  if (directories_.empty()) {
    return absl::PermissionDeniedError(absl::StrCat(kField, ": this gemmd reads no files (no --tensor_dirs)"));
  }
  if (path.empty() || path[0] == '/' || path.size() >= PATH_MAX || path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(kField, ": expected a path relative to one of --tensor_dirs, got ",
                                                   path.empty()     ? "none"
                                                   : path[0] == '/' ? "an absolute one"
                                                                    : absl::StrCat(path.size(), " bytes")));
  }
  for (const UniqueFd& directory : directories_) {
    const UniqueFd named = ResolveBeneath(directory.get(), path.c_str());
    if (!named.valid()) continue;
    absl::StatusOr<TensorFile> file = OpenRegular(named);
    if (file.ok()) return file;
  }
  return NoSuchFile();
}

}  // namespace gemmd
