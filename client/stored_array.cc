// SPDX-License-Identifier: Apache-2.0
#include "client/stored_array.h"

#include "absl/strings/str_cat.h"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>

namespace gemmd {
absl::StatusOr<DType> ParseDType(absl::string_view name) {
  for (const DType dtype : {DType::kE4m3, DType::kBf16, DType::kF32, DType::kI32, DType::kI64, DType::kU8}) {
    if (name == Name(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("dtype: expected e4m3, bf16, f32, i32, i64 or u8, got \"", name, "\""));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::ErrnoToStatus(errno, path);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (file.bad()) return absl::ErrnoToStatus(errno, path);
  return std::move(bytes).str();
}

absl::Status WriteFile(const std::string& path, absl::string_view bytes) {
  const std::string temporary = absl::StrCat(path, ".part");
  errno = 0;
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.flush();
    if (!file) {
      const absl::Status status = absl::ErrnoToStatus(errno == 0 ? EIO : errno, path);
      std::remove(temporary.c_str());
      return status;
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const absl::Status status = absl::ErrnoToStatus(errno, path);
  std::remove(temporary.c_str());
  return status;
}

}  // namespace gemmd
