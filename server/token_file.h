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

#include <memory>
#include <string>
#include <sys/stat.h>
#include <vector>

namespace gemmd {

// Thread-safe.
class TokenFile {
 public:
  using Tokens = std::vector<std::string>;

  // Whether the file has changed is looked at on use, at most once in `refresh`. Errors: INVALID_ARGUMENT if it cannot
  // be read, others than its owner and group can read or write it, or it has no token.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(std::string path, absl::Duration refresh = absl::Seconds(1));

  // Whether the file has this token; takes the same time wherever the first difference is. A file without tokens
  // accepts none; one that cannot be used as for Open is logged once, and the tokens read before stay.
  bool Accepts(absl::string_view token);

 private:
  TokenFile(std::string path, absl::Duration refresh) : path_(std::move(path)), refresh_(refresh) {}

  std::shared_ptr<const Tokens> Current();
  absl::StatusOr<Tokens> Read(struct stat* state) const;

  const std::string path_;
  const absl::Duration refresh_;
  absl::Mutex mutex_;
  absl::Time looked_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  struct stat state_ ABSL_GUARDED_BY(mutex_) {};  // When it was last read.
  std::shared_ptr<const Tokens> tokens_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TOKEN_FILE_H_
