// SPDX-License-Identifier: Apache-2.0
#include "server/token_file.h"

#include "proto/bearer_token.h"
#include "proto/unique_fd.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

// Thousands of tokens. A larger file is another one.
constexpr off_t kMaxFileBytes = 1 << 20;

bool SameTime(const timespec& left, const timespec& right) {
  return left.tv_sec == right.tv_sec && left.tv_nsec == right.tv_nsec;
}

// ctime covers the mode and, with the inode, a file that was moved here.
bool SameState(const struct stat& left, const struct stat& right) {
  return left.st_dev == right.st_dev && left.st_ino == right.st_ino && left.st_size == right.st_size &&
         SameTime(left.st_mtim, right.st_mtim) && SameTime(left.st_ctim, right.st_ctim);
}

absl::Status Unusable(absl::string_view path, absl::string_view expected, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat("--token_file: ", path, ": expected ", expected, ", got ", got));
}

absl::StatusOr<std::string> ReadToEnd(int fd) {
  std::string bytes;
  char chunk[4096];
  for (;;) {
    const ssize_t count = read(fd, chunk, sizeof(chunk));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "read");
    if (count == 0) return bytes;
    bytes.append(chunk, static_cast<size_t>(count));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(std::string path, OnReload on_reload,
                                                           absl::Duration refresh) {
  std::unique_ptr<TokenFile> file(new TokenFile(std::move(path), std::move(on_reload), refresh));
  absl::MutexLock lock(&file->mutex_);
  absl::StatusOr<Tokens> tokens = file->Read(&file->state_);
  if (!tokens.ok()) return tokens.status();
  if (tokens->empty()) return Unusable(file->path_, "at least one token", "none");
  file->tokens_ = std::make_shared<const Tokens>(*std::move(tokens));
  file->looked_at_ = absl::Now();
  return file;
}

absl::StatusOr<TokenFile::Tokens> TokenFile::Read(struct stat* state) const {
  // Not blocking: the path may name a pipe.
  const UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid() || fstat(fd.get(), state) != 0) return Unusable(path_, "a readable file", std::strerror(errno));
  if (!S_ISREG(state->st_mode)) return Unusable(path_, "a regular file", "another kind");
  if ((state->st_mode & S_IRWXO) != 0) {
    return Unusable(path_, "a file that only its owner and group may use",
                    absl::StrFormat("mode %04o", state->st_mode & 07777));
  }
  if (state->st_size > kMaxFileBytes) {
    return Unusable(path_, absl::StrCat("at most ", kMaxFileBytes, " bytes"), absl::StrCat(state->st_size));
  }
  const absl::StatusOr<std::string> text = ReadToEnd(fd.get());
  if (!text.ok()) return Unusable(path_, "a readable file", text.status().message());
  absl::StatusOr<Tokens> tokens = ParseTokens(*text);
  if (!tokens.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--token_file: ", path_, ": ", tokens.status().message()));
  }
  return tokens;
}

TokenFile::Look TokenFile::LookAtFile() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (now - looked_at_ < refresh_) return {tokens_, {}};
  looked_at_ = now;
  struct stat state {};
  // A file that is not there has the state of no file: read, and complained about, once.
  if (stat(path_.c_str(), &state) != 0) state = {};
  if (SameState(state, state_)) return {tokens_, {}};
  state_ = state;
  absl::StatusOr<Tokens> tokens = Read(&state);
  if (!tokens.ok()) {
    spdlog::error("tokens: {}; the tokens read before stay", std::string(tokens.status().message()));
    return {tokens_, tokens.status()};
  }
  spdlog::info("tokens: read again, {} accepted", tokens->size());
  state_ = state;
  tokens_ = std::make_shared<const Tokens>(*std::move(tokens));
  return {tokens_, absl::OkStatus()};
}

bool TokenFile::Accepts(absl::string_view token) {
  const Look look = LookAtFile();
  if (look.reload) on_reload_(*look.reload);
  bool accepted = false;
  for (const std::string& known : *look.tokens) {
    // All are compared, so that the time does not tell which one was found.
    accepted |= known.size() == token.size() && CRYPTO_memcmp(known.data(), token.data(), token.size()) == 0;
  }
  return accepted;
}

}  // namespace gemmd
