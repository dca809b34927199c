// SPDX-License-Identifier: Apache-2.0
#include "server/usage_ledger.h"

#include "absl/strings/str_cat.h"

namespace gemmd {
namespace {

absl::Status TooMany(uint64_t limit, absl::string_view noun, absl::string_view owner) {
  return absl::ResourceExhaustedError(absl::StrCat("quota: expected at most ", limit, " ", noun, " of one ", owner));
}

}  // namespace

absl::Status UsageLedger::Charge(const Account& account, uint64_t byte_size) {
  const auto session = by_session_.find(account.session);
  const Usage of_session = session == by_session_.end() ? Usage{} : session->second;
  const auto identity = by_identity_.find(account.identity);
  const Usage of_identity = identity == by_identity_.end() ? Usage{} : identity->second;
  // Subtraction on the left: a hostile byte_size cannot overflow a sum.
  if (account.session != 0) {
    if (of_session.count >= limits_.count_per_session)
      return TooMany(limits_.count_per_session, limits_.noun, "session");
    if (byte_size > limits_.bytes_per_session - of_session.bytes) {
      return TooMany(limits_.bytes_per_session, absl::StrCat("bytes in ", limits_.noun), "session");
    }
  }
  if (of_identity.count >= limits_.count_per_identity) return TooMany(limits_.count_per_identity, limits_.noun, "user");
  if (byte_size > limits_.bytes_per_identity - of_identity.bytes) {
    return TooMany(limits_.bytes_per_identity, absl::StrCat("bytes in ", limits_.noun), "user");
  }
  if (account.session != 0) by_session_[account.session] = {of_session.count + 1, of_session.bytes + byte_size};
  by_identity_[account.identity] = {of_identity.count + 1, of_identity.bytes + byte_size};
  return absl::OkStatus();
}

void UsageLedger::Release(const Account& account, uint64_t byte_size) {
  if (account.session != 0) {
    const auto session = by_session_.find(account.session);
    session->second.bytes -= byte_size;
    if (--session->second.count == 0) by_session_.erase(session);
  }
  const auto identity = by_identity_.find(account.identity);
  identity->second.bytes -= byte_size;
  if (--identity->second.count == 0) by_identity_.erase(identity);
}

}  // namespace gemmd
