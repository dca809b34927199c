// SPDX-License-Identifier: Apache-2.0
// Ownership of one file descriptor. Used wherever memory crosses a process boundary: broker, control socket, ring,
// regions.
#ifndef GEMMD_PROTO_UNIQUE_FD_H_
#define GEMMD_PROTO_UNIQUE_FD_H_

#include <utility>

namespace gemmd {

// Owns a descriptor; closes it on destruction and does nothing else. Move-only.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { Reset(); }

  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);
  // A second descriptor (close-on-exec) for the same open file; invalid if the process is out of descriptors.
  UniqueFd Duplicate() const;

 private:
  int fd_ = -1;
};

}  // namespace gemmd

#endif  // GEMMD_PROTO_UNIQUE_FD_H_
