// SPDX-License-Identifier: Apache-2.0
#include "gpu/fair_queue.h"

#include <algorithm>

namespace gemmd {

void FairQueue::Add(uint64_t session_id, uint64_t job) {
  Session& session = sessions_[session_id];
  if (session.jobs.empty()) {
    idle_.erase({session.virtual_ns, session_id});
    session.virtual_ns = std::max(session.virtual_ns, now_);
    active_.emplace(session.virtual_ns, session_id);
  }
  session.jobs.insert(session.jobs.end(), job);
}

void FairQueue::Remove(uint64_t session_id, uint64_t job) { Serve(session_id, job, 0); }

void FairQueue::Serve(uint64_t session_id, uint64_t job, uint64_t predicted_ns) {
  Session& session = sessions_.at(session_id);
  session.jobs.erase(job);
  active_.erase({session.virtual_ns, session_id});
  if (predicted_ns > 0) now_ = std::max(now_, session.virtual_ns);
  session.virtual_ns += predicted_ns;
  if (session.jobs.empty()) {
    idle_.emplace(session.virtual_ns, session_id);
  } else {
    active_.emplace(session.virtual_ns, session_id);
  }
  ForgetIdle();
}

uint64_t FairQueue::Front() const { return *sessions_.at(active_.begin()->second).jobs.begin(); }

// Sessions at or behind the present would start there anyway; with nobody waiting the present is where the last one
// ends.
void FairQueue::ForgetIdle() {
  if (active_.empty() && !idle_.empty()) now_ = std::max(now_, idle_.rbegin()->first);
  while (!idle_.empty() && (idle_.begin()->first <= now_ || idle_.size() > kMaxIdleSessions)) {
    sessions_.erase(idle_.begin()->second);
    idle_.erase(idle_.begin());
  }
}

}  // namespace gemmd
