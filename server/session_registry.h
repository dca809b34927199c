// SPDX-License-Identifier: Apache-2.0
// All open sessions. The broker and the Sessions service open and close them; the authenticator looks them up for each
// call. Closing a session frees every region and private tensor that it owns.
#ifndef GEMMD_SERVER_SESSION_REGISTRY_H_
#define GEMMD_SERVER_SESSION_REGISTRY_H_

#include "server/quotas.h"
#include "server/region_registry.h"
#include "server/session.h"
#include "server/tensor_registry.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace gemmd {

// Why a session ended.
enum class SessionEnd : uint8_t {
  kClient = 0,  // Its client closed the connection or stream, or died.
  kCutOff = 1,  // Its client did not read its replies.
  kShutdown = 2,
};
inline constexpr size_t kSessionEndCount = 3;

absl::string_view Name(SessionEnd end);

struct SessionCounts {
  uint64_t open_local = 0;   // From the broker.
  uint64_t open_remote = 0;  // Over gRPC.
  uint64_t opened_local_total = 0;
  uint64_t opened_remote_total = 0;
  std::array<uint64_t, kSessionEndCount> closed_total{};
  uint64_t refused_total = 0;          // At a quota.
  uint64_t unauthenticated_total = 0;  // Wrong credentials.
};

// Thread-safe.
class SessionRegistry {
 public:
  SessionRegistry(const Quotas& quotas, std::shared_ptr<RegionRegistry> regions,
                  std::shared_ptr<TensorRegistry> tensors);

  // Opens a session with a fresh id and 128 random bits as its secret. `client_name`: at most 63 printable ASCII
  // characters, may be empty. Errors: INVALID_ARGUMENT, RESOURCE_EXHAUSTED (sessions in all, of one user).
  absl::StatusOr<std::shared_ptr<Session>> Open(const Identity& identity, absl::string_view client_name);

  // The session of these credentials. The secret is compared in constant time. Errors: UNAUTHENTICATED, with one text
  // for an unknown id, an ended session and a wrong secret.
  absl::StatusOr<std::shared_ptr<Session>> Authenticate(uint64_t id, absl::string_view secret_hex) const;

  // Ends a session and frees what it owns; memory that jobs use goes when they are done. Unknown ids are ignored.
  void Close(uint64_t id, SessionEnd end = SessionEnd::kClient);

  // The session of calls without credentials. Inline operands only.
  const std::shared_ptr<Session>& anonymous() const { return anonymous_; }

  SessionCounts Counts() const;

 private:
  std::shared_ptr<JobCount> JobsOf(const Identity& identity) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Quotas quotas_;
  const std::shared_ptr<RegionRegistry> regions_;
  const std::shared_ptr<TensorRegistry> tensors_;
  const std::shared_ptr<Session> anonymous_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Identity, uint32_t> sessions_of_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Identity, std::weak_ptr<JobCount>> jobs_of_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  SessionCounts counts_ ABSL_GUARDED_BY(mutex_);
  mutable std::atomic<uint64_t> unauthenticated_{0};
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_SESSION_REGISTRY_H_
