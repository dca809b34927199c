// SPDX-License-Identifier: Apache-2.0
#include "server/session.h"

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace gemmd {

bool JobCount::TryAdd() {
  uint32_t count = in_flight();
  do {
    if (count >= limit_) return false;
  } while (!in_flight_.compare_exchange_weak(count, count + 1, std::memory_order_relaxed));
  return true;
}

JobTicket& JobTicket::operator=(JobTicket&& other) noexcept {
  if (this != &other) {
    Release();
    session_ = std::move(other.session_);
  }
  return *this;
}

void JobTicket::Release() {
  if (session_ == nullptr) return;
  session_->jobs_.Remove();
  if (session_->parameters_.jobs_of_user != nullptr) session_->parameters_.jobs_of_user->Remove();
  session_.reset();
}

std::string Session::SecretHex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(parameters_.secret.data()), parameters_.secret.size()));
}

absl::StatusOr<JobTicket> Session::AdmitJob() {
  if (closed()) return absl::UnauthenticatedError("session: it has ended");
  if (!jobs_.TryAdd()) {
    return absl::ResourceExhaustedError(absl::StrCat("session: expected at most ", jobs_.limit(), " jobs in flight"));
  }
  JobCount* const of_user = parameters_.jobs_of_user.get();
  if (of_user != nullptr && !of_user->TryAdd()) {
    jobs_.Remove();
    return absl::ResourceExhaustedError(
        absl::StrCat("session: expected at most ", of_user->limit(), " jobs in flight of one user"));
  }
  return JobTicket(shared_from_this());
}

}  // namespace gemmd
