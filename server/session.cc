// SPDX-License-Identifier: Apache-2.0
#include "server/session.h"

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace gemmd {

JobTicket& JobTicket::operator=(JobTicket&& other) noexcept {
  if (this != &other) {
    Release();
    session_ = std::move(other.session_);
  }
  return *this;
}

void JobTicket::Release() {
  if (session_ != nullptr) session_->jobs_in_flight_.fetch_sub(1, std::memory_order_relaxed);
  session_.reset();
}

std::string Session::SecretHex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(parameters_.secret.data()), parameters_.secret.size()));
}

absl::StatusOr<JobTicket> Session::AdmitJob() {
  if (closed()) return absl::UnauthenticatedError("session: it has ended");
  uint32_t count = jobs_in_flight_.load(std::memory_order_relaxed);
  do {
    if (count >= parameters_.job_limit) {
      return absl::ResourceExhaustedError(
          absl::StrCat("session: expected at most ", parameters_.job_limit, " jobs in flight"));
    }
  } while (!jobs_in_flight_.compare_exchange_weak(count, count + 1, std::memory_order_relaxed));
  return JobTicket(shared_from_this());
}

}  // namespace gemmd
