// SPDX-License-Identifier: Apache-2.0
// Whose turn it is: start-time fair queueing between sessions. Each session has a virtual time that advances by the
// device time its jobs are predicted to take; the one that is behind goes first. A session that was idle starts at the
// present virtual time, so it neither saves up turns nor is punished for the past. Pure; the batcher has one per
// priority.
#ifndef GEMMD_GPU_FAIR_QUEUE_H_
#define GEMMD_GPU_FAIR_QUEUE_H_

#include "absl/container/flat_hash_map.h"

#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>

namespace gemmd {

class FairQueue {
 public:
  // Sessions without waiting jobs whose virtual time is remembered. More than could matter at once; the ones least
  // ahead are forgotten first.
  static constexpr size_t kMaxIdleSessions = 4096;

  // `job` is the job's place in the order of arrival, unique in the queue.
  void Add(uint64_t session, uint64_t job);

  // Removes a job that does not go to the device. Requires: it is there.
  void Remove(uint64_t session, uint64_t job);

  // Removes a job that goes to the device for `predicted_ns`. Requires: it is there.
  void Serve(uint64_t session, uint64_t job, uint64_t predicted_ns);

  // The oldest job of the session that is behind. Requires: !empty().
  uint64_t Front() const;

  bool empty() const { return active_.empty(); }
  size_t remembered_sessions() const { return sessions_.size(); }

 private:
  struct Session {
    uint64_t virtual_ns = 0;
    std::set<uint64_t> jobs;
  };
  using Order = std::set<std::pair<uint64_t, uint64_t>>;  // (virtual time, session).

  void ForgetIdle();

  absl::flat_hash_map<uint64_t, Session> sessions_;
  Order active_;      // Sessions with jobs.
  Order idle_;        // Sessions without jobs that are ahead of the present.
  uint64_t now_ = 0;  // Virtual: where the last job to be served started.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_FAIR_QUEUE_H_
