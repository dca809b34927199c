// SPDX-License-Identifier: Apache-2.0
// One client as the front end sees it: who it is, its secret, and how many of its and its user's jobs are in flight.
// Made by SessionRegistry; services hold it by shared_ptr while a call runs. What a session owns is kept by
// RegionRegistry and TensorRegistry under its id.
#ifndef GEMMD_SERVER_SESSION_H_
#define GEMMD_SERVER_SESSION_H_

#include "proto/broker.h"

#include "absl/status/statusor.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <sys/types.h>
#include <utility>

namespace gemmd {

// Who a client is. `uid` comes from the kernel and counts only if not remote; remote clients cannot be told apart.
struct Identity {
  bool remote = true;
  uid_t uid = 0;

  friend bool operator==(const Identity& left, const Identity& right) {
    return left.remote == right.remote && (left.remote || left.uid == right.uid);
  }
  template <typename H>
  friend H AbslHashValue(H hash, const Identity& identity) {
    return H::combine(std::move(hash), identity.remote, identity.remote ? 0 : identity.uid);
  }
};

// Jobs in flight against a limit: of one session, or of all sessions of one user. Thread-safe.
class JobCount {
 public:
  explicit JobCount(uint32_t limit) : limit_(limit) {}
  JobCount(const JobCount&) = delete;
  JobCount& operator=(const JobCount&) = delete;

  uint32_t limit() const { return limit_; }
  uint32_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }

  // False, and nothing added, at the limit.
  bool TryAdd();
  // Takes back one that was added.
  void Remove() { in_flight_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  const uint32_t limit_;
  std::atomic<uint32_t> in_flight_{0};
};

using SessionSecret = std::array<uint8_t, kSecretBytes>;

class Session;

// The right to have one job in flight; gives it back on destruction. Move-only, may outlive its session's closing.
class JobTicket {
 public:
  JobTicket() = default;
  JobTicket(JobTicket&&) noexcept = default;
  JobTicket& operator=(JobTicket&& other) noexcept;
  ~JobTicket() { Release(); }

 private:
  friend class Session;
  explicit JobTicket(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  void Release();

  std::shared_ptr<Session> session_;
};

// Thread-safe.
class Session : public std::enable_shared_from_this<Session> {
 public:
  // id 0 is the anonymous session: calls without credentials, which own and name nothing.
  struct Parameters {
    uint64_t id = 0;
    Identity identity;
    std::string client_name;
    SessionSecret secret{};
    uint32_t job_limit = 0;
    std::shared_ptr<JobCount> jobs_of_user =
        {};  // Shared by the user's sessions; null: no limit but the session's own.
  };
  explicit Session(Parameters parameters) : parameters_(std::move(parameters)), jobs_(parameters_.job_limit) {}
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  uint64_t id() const { return parameters_.id; }
  bool anonymous() const { return parameters_.id == 0; }
  const Identity& identity() const { return parameters_.identity; }
  const std::string& client_name() const { return parameters_.client_name; }
  const SessionSecret& secret() const { return parameters_.secret; }
  std::string SecretHex() const;

  // Admits one job until the ticket is destroyed. Errors: RESOURCE_EXHAUSTED (jobs in flight, of the session or of its
  // user), UNAUTHENTICATED (the session has ended).
  absl::StatusOr<JobTicket> AdmitJob();

  uint32_t jobs_in_flight() const { return jobs_.in_flight(); }

  // True once the session has ended. Registries add nothing to a closed session.
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  void MarkClosed() { closed_.store(true, std::memory_order_release); }

 private:
  friend class JobTicket;

  const Parameters parameters_;
  JobCount jobs_;
  std::atomic<bool> closed_{false};
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_SESSION_H_
