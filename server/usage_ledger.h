// SPDX-License-Identifier: Apache-2.0
// Counts and bytes held per session and per user, against their limits. A plain value without a lock: the region and
// the tensor registry each keep one under their own mutex.
#ifndef GEMMD_SERVER_USAGE_LEDGER_H_
#define GEMMD_SERVER_USAGE_LEDGER_H_

#include "server/session.h"

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include <cstdint>

namespace gemmd {

class UsageLedger {
 public:
  struct Limits {
    absl::string_view noun;  // "regions"; for messages. Static storage.
    uint64_t count_per_session = 0;
    uint64_t bytes_per_session = 0;
    uint64_t count_per_identity = 0;
    uint64_t bytes_per_identity = 0;
  };
  // Who pays. session 0: the user alone.
  struct Account {
    uint64_t session = 0;
    Identity identity;
  };

  explicit UsageLedger(const Limits& limits) : limits_(limits) {}

  // Adds one object of `byte_size`, or nothing on error. Errors: RESOURCE_EXHAUSTED, naming the limit.
  absl::Status Charge(const Account& account, uint64_t byte_size);

  // Takes back what a Charge with the same arguments added.
  void Release(const Account& account, uint64_t byte_size);

 private:
  struct Usage {
    uint64_t count = 0;
    uint64_t bytes = 0;
  };

  Limits limits_;
  absl::flat_hash_map<uint64_t, Usage> by_session_;
  absl::flat_hash_map<Identity, Usage> by_identity_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_USAGE_LEDGER_H_
