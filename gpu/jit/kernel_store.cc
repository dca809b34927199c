// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/kernel_store.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

namespace fs = std::filesystem;

constexpr char kExtension[] = ".kernel";
constexpr char kUnfinished[] = "writing.";
// A file that is written takes milliseconds; one of that age belongs to a process that was killed.
constexpr std::chrono::hours kAbandoned{1};
constexpr uint64_t kMagic = 0x314c454e524b4d47;  // "GMKRNEL1"

struct Header {
  uint64_t magic = kMagic;
  Digest key;
  Digest checksum;  // Of everything after the header.
  uint64_t symbol_size = 0;
  uint64_t cubin_size = 0;
};
static_assert(sizeof(Header) == 56);

std::string Encode(const KernelKey& key, const CompiledKernel& kernel) {
  const std::string body = absl::StrCat(kernel.symbol, kernel.cubin);
  Header header;
  header.key = key.digest();
  header.checksum = DigestOf(body);
  header.symbol_size = kernel.symbol.size();
  header.cubin_size = kernel.cubin.size();
  return absl::StrCat(absl::string_view(reinterpret_cast<const char*>(&header), sizeof(header)), body);
}

std::optional<CompiledKernel> Decode(const KernelKey& key, absl::string_view bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, bytes.data(), sizeof(header));
  bytes.remove_prefix(sizeof(header));
  if (header.magic != kMagic || !(header.key == key.digest())) return std::nullopt;
  if (header.symbol_size > bytes.size() || header.cubin_size != bytes.size() - header.symbol_size) return std::nullopt;
  if (!(header.checksum == DigestOf(bytes))) return std::nullopt;
  return CompiledKernel{std::string(bytes.substr(0, header.symbol_size)),
                        std::string(bytes.substr(header.symbol_size))};
}

absl::Status WriteFile(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return absl::ErrnoToStatus(errno, "writing a kernel file");
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  // A crash must not leave a file that has its name but not its bytes.
  if (fsync(fd) != 0) return absl::ErrnoToStatus(errno, "writing a kernel file");
  return absl::OkStatus();
}

// What killed processes left. Nothing else may count or remove it: it has no name yet.
void RemoveAbandoned(const std::string& directory) {
  std::error_code error;
  for (const fs::directory_entry& file : fs::directory_iterator(directory, error)) {
    std::error_code gone;
    if (!absl::StartsWith(file.path().filename().string(), kUnfinished)) continue;
    const auto age = fs::file_time_type::clock::now() - file.last_write_time(gone);
    if (!gone && age > kAbandoned) fs::remove(file.path(), gone);
  }
}

}  // namespace

absl::StatusOr<KernelStore> KernelStore::Open(std::string directory, uint64_t byte_limit) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return absl::ErrnoToStatus(error.value(), "kernel cache folder");
  RemoveAbandoned(directory);
  return KernelStore(std::move(directory), byte_limit);
}

std::string KernelStore::PathOf(const KernelKey& key) const {
  return absl::StrCat(directory_, "/", key.digest().Hex(), kExtension);
}

std::optional<CompiledKernel> KernelStore::Load(const KernelKey& key) const {
  const std::string path = PathOf(key);
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::optional<CompiledKernel> kernel = Decode(key, bytes);
  std::error_code ignored;  // Another process may have removed it meanwhile.
  if (!kernel) {
    fs::remove(path, ignored);
    return std::nullopt;
  }
  fs::last_write_time(path, fs::file_time_type::clock::now(), ignored);  // Used now: goes last.
  return kernel;
}

absl::StatusOr<uint64_t> KernelStore::Save(const KernelKey& key, const CompiledKernel& kernel) const {
  std::string temporary = absl::StrCat(directory_, "/", kUnfinished, "XXXXXX");
  const int fd = mkstemp(temporary.data());
  if (fd < 0) return absl::ErrnoToStatus(errno, "kernel cache folder");
  absl::Status status = WriteFile(fd, Encode(key, kernel));
  close(fd);
  if (status.ok() && rename(temporary.c_str(), PathOf(key).c_str()) != 0) {
    status = absl::ErrnoToStatus(errno, "renaming a kernel file");
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return RemoveOldest();
}

uint64_t KernelStore::RemoveOldest() const {
  struct Entry {
    fs::file_time_type used;
    uint64_t size;
    fs::path path;
  };
  std::vector<Entry> entries;
  uint64_t total = 0;
  std::error_code error;
  for (const fs::directory_entry& file : fs::directory_iterator(directory_, error)) {
    if (file.path().extension() != kExtension) continue;
    std::error_code gone;
    const Entry entry{file.last_write_time(gone), file.file_size(gone), file.path()};
    if (gone) continue;
    total += entry.size;
    entries.push_back(entry);
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  uint64_t removed = 0;
  for (const Entry& entry : entries) {
    if (total <= byte_limit_) break;
    if (fs::remove(entry.path, error)) ++removed;  // Else another process was faster.
    total -= entry.size;
  }
  return removed;
}

}  // namespace gemmd
