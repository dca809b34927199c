// SPDX-License-Identifier: Apache-2.0
// The bearer tokens that calls on HOST:PORT need: a file that is read again when it changes. Owned by TokenGuard.
#ifndef GEMMD_SERVER_TOKEN_FILE_H_
#define GEMMD_SERVER_TOKEN_FILE_H_

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <sys/stat.h>
#include <utility>
#include <vector>

namespace gemmd {

// Thread-safe.
class TokenFile {
 public:
  using Tokens = std::vector<std::string>;
  // Called after each reading but the first, on the thread of the call that caused it, under no lock.
  using OnReload = std::function<void(const absl::Status&)>;

  // Whether the file has changed is looked at on use, at most once in `refresh`. Errors: INVALID_ARGUMENT if it cannot
  // be read, others than its owner and group can read or write it, or it has no token.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(
      std::string path, OnReload on_reload = [](const absl::Status&) {}, absl::Duration refresh = absl::Seconds(1));

  // Whether the file has this token; takes the same time wherever the first difference is. A file without tokens
  // accepts none; one that cannot be used as for Open is logged once, and the tokens read before stay.
  bool Accepts(absl::string_view token);

 private:
  struct Look {
    std::shared_ptr<const Tokens> tokens;
    std::optional<absl::Status> reload;  // How reading the file again went, if that was due.
  };

  TokenFile(std::string path, OnReload on_reload, absl::Duration refresh)
      : path_(std::move(path)), on_reload_(std::move(on_reload)), refresh_(refresh) {}

  Look LookAtFile();
  absl::StatusOr<Tokens> Read(struct stat* state) const;

  const std::string path_;
  const OnReload on_reload_;
  const absl::Duration refresh_;
  absl::Mutex mutex_;
  absl::Time looked_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  struct stat state_ ABSL_GUARDED_BY(mutex_) {};  // When it was last read.
  std::shared_ptr<const Tokens> tokens_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TOKEN_FILE_H_
