// SPDX-License-Identifier: Apache-2.0
#include "proto/unique_fd.h"

#include <fcntl.h>
#include <unistd.h>

namespace gemmd {

void UniqueFd::Reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

UniqueFd UniqueFd::Duplicate() const { return UniqueFd(fcntl(fd_, F_DUPFD_CLOEXEC, 0)); }

}  // namespace gemmd
