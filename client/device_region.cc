// SPDX-License-Identifier: Apache-2.0
#include "client/device_region.h"

#include "absl/strings/str_cat.h"

#include <cstring>

namespace gemmd {

const Gpu* DeviceRegion::gpu() const {
  return memory_.gpu != nullptr ? memory_.gpu.get() : memory_.allocation.gpu().get();
}

void* DeviceRegion::data() const {
  if (memory_.address != nullptr) return memory_.address;
  return gpu() == nullptr ? memory_.mapping.data() : memory_.allocation.data();
}

absl::Status DeviceRegion::CheckRange(uint64_t offset, uint64_t byte_size) const {
  if (offset <= byte_size_ && byte_size <= byte_size_ - offset) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("offset: expected offset + size of at most the region's ", byte_size_,
                                            " bytes, got ", offset, " + ", byte_size));
}

absl::Status DeviceRegion::Write(uint64_t offset, absl::Span<const std::byte> bytes) const {
  if (absl::Status status = CheckRange(offset, bytes.size()); !status.ok() || bytes.empty()) return status;
  std::byte* const destination = static_cast<std::byte*>(data()) + offset;
  if (gpu() != nullptr) return gpu()->CopyToGpu(destination, bytes.data(), bytes.size());
  std::memcpy(destination, bytes.data(), bytes.size());
  return absl::OkStatus();
}

absl::Status DeviceRegion::Read(uint64_t offset, absl::Span<std::byte> bytes) const {
  if (absl::Status status = CheckRange(offset, bytes.size()); !status.ok() || bytes.empty()) return status;
  const std::byte* const source = static_cast<const std::byte*>(data()) + offset;
  if (gpu() != nullptr) return gpu()->CopyToHost(bytes.data(), source, bytes.size());
  std::memcpy(bytes.data(), source, bytes.size());
  return absl::OkStatus();
}

}  // namespace gemmd
