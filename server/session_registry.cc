// SPDX-License-Identifier: Apache-2.0
#include "server/session_registry.h"

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>
#include <sys/random.h>
#include <utility>

namespace gemmd {
namespace {

absl::Status CheckClientName(absl::string_view name) {
  // One byte of the broker's field is the terminator.
  constexpr size_t kLongest = kClientNameBytes - 1;
  if (name.size() > kLongest) {
    return absl::InvalidArgumentError(
        absl::StrCat("client_name: expected at most ", kLongest, " characters, got ", name.size()));
  }
  if (!std::all_of(name.begin(), name.end(),
                   [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); })) {
    return absl::InvalidArgumentError("client_name: expected printable ASCII characters");
  }
  return absl::OkStatus();
}

absl::StatusOr<SessionSecret> DrawSecret() {
  SessionSecret secret;
  size_t filled = 0;
  while (filled < secret.size()) {
    const ssize_t count = getrandom(secret.data() + filled, secret.size() - filled, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::InternalError("getrandom failed");
    filled += static_cast<size_t>(count);
  }
  return secret;
}

// Takes the same time wherever the first difference is.
bool EqualSecrets(const SessionSecret& left, const SessionSecret& right) {
  unsigned difference = 0;
  for (size_t i = 0; i < left.size(); ++i) difference |= static_cast<unsigned>(left[i] ^ right[i]);
  return difference == 0;
}

bool IsHexSecret(absl::string_view text) {
  return text.size() == size_t{2} * kSecretBytes && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isxdigit(static_cast<unsigned char>(c));
         });
}

}  // namespace

absl::string_view Name(SessionEnd end) {
  switch (end) {
    case SessionEnd::kClient:
      return "client";
    case SessionEnd::kCutOff:
      return "cut_off";
    case SessionEnd::kShutdown:
      return "shutdown";
  }
  return "invalid";
}

SessionRegistry::SessionRegistry(const Quotas& quotas, std::shared_ptr<RegionRegistry> regions,
                                 std::shared_ptr<TensorRegistry> tensors)
    : quotas_(quotas),
      regions_(std::move(regions)),
      tensors_(std::move(tensors)),
      anonymous_(std::make_shared<Session>(Session::Parameters{
          .id = 0, .identity = {}, .client_name = "", .secret = {}, .job_limit = quotas.anonymous_jobs})) {}

// A user's jobs are counted for as long as one of its sessions or one of its jobs is left: a user who closes everything
// under running jobs and comes back does not start from zero.
std::shared_ptr<JobCount> SessionRegistry::JobsOf(const Identity& identity) {
  absl::erase_if(jobs_of_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<JobCount>& known = jobs_of_[identity];
  std::shared_ptr<JobCount> jobs = known.lock();
  if (jobs == nullptr) {
    jobs = std::make_shared<JobCount>(quotas_.jobs_per_uid);
    known = jobs;
  }
  return jobs;
}

absl::StatusOr<std::shared_ptr<Session>> SessionRegistry::Open(const Identity& identity,
                                                               absl::string_view client_name) {
  if (absl::Status status = CheckClientName(client_name); !status.ok()) return status;
  absl::StatusOr<SessionSecret> secret = DrawSecret();
  if (!secret.ok()) return secret.status();

  absl::MutexLock lock(&mutex_);
  uint32_t& open = sessions_of_[identity];
  const bool full = sessions_.size() >= quotas_.sessions;
  if (full || open >= quotas_.sessions_per_uid) {
    if (open == 0) sessions_of_.erase(identity);
    ++counts_.refused_total;
    if (full) return absl::ResourceExhaustedError(absl::StrCat("sessions: expected at most ", quotas_.sessions));
    return absl::ResourceExhaustedError(
        absl::StrCat("sessions: expected at most ", quotas_.sessions_per_uid, " of one user"));
  }
  ++open;
  ++(identity.remote ? counts_.open_remote : counts_.open_local);
  ++(identity.remote ? counts_.opened_remote_total : counts_.opened_local_total);
  auto session = std::make_shared<Session>(Session::Parameters{.id = next_id_++,
                                                               .identity = identity,
                                                               .client_name = std::string(client_name),
                                                               .secret = *secret,
                                                               .job_limit = quotas_.jobs_per_session,
                                                               .jobs_of_user = JobsOf(identity)});
  sessions_.emplace(session->id(), session);
  return session;
}

absl::StatusOr<std::shared_ptr<Session>> SessionRegistry::Authenticate(uint64_t id,
                                                                       absl::string_view secret_hex) const {
  std::shared_ptr<Session> session;
  {
    absl::ReaderMutexLock lock(&mutex_);
    const auto found = sessions_.find(id);
    if (found != sessions_.end()) session = found->second;
  }
  SessionSecret given{};
  const bool well_formed = IsHexSecret(secret_hex);
  if (well_formed) {
    const std::string bytes = absl::HexStringToBytes(secret_hex);
    std::copy(bytes.begin(), bytes.end(), given.begin());
  }
  // An unknown id is compared as well, with a secret that nobody has, so that it takes as long as a wrong one.
  static constexpr SessionSecret kNobody{};
  const bool equal = EqualSecrets(given, session != nullptr ? session->secret() : kNobody);
  if (session != nullptr && well_formed && equal) return session;
  unauthenticated_.fetch_add(1, std::memory_order_relaxed);
  return absl::UnauthenticatedError("session: unknown id or wrong secret");
}

void SessionRegistry::Close(uint64_t id, SessionEnd end) {
  std::shared_ptr<Session> session;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) return;
    session = std::move(found->second);
    sessions_.erase(found);
    const auto open = sessions_of_.find(session->identity());
    if (--open->second == 0) sessions_of_.erase(open);
    --(session->identity().remote ? counts_.open_remote : counts_.open_local);
    ++counts_.closed_total[static_cast<size_t>(end)];
  }
  // First closed, then emptied: a registration that is under way either sees the mark or is found by CloseAllOf.
  session->MarkClosed();
  regions_->CloseAllOf(*session);
  tensors_->CloseAllOf(*session);
}

SessionCounts SessionRegistry::Counts() const {
  absl::ReaderMutexLock lock(&mutex_);
  SessionCounts counts = counts_;
  counts.unauthenticated_total = unauthenticated_.load(std::memory_order_relaxed);
  return counts;
}

}  // namespace gemmd
