// SPDX-License-Identifier: Apache-2.0
// A DNS server for one test, on a loopback port: says for every name the same IPv4 addresses. gRPC asks it for the
// target "dns://" + address() + "/NAME:PORT".
#ifndef GEMMD_TESTS_E2E_NAME_SERVER_H_
#define GEMMD_TESTS_E2E_NAME_SERVER_H_

#include "proto/unique_fd.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace gemmd::testing {

// Thread-safe; answers on a thread of its own.
class NameServer {
 public:
  // Errors: INTERNAL (no socket).
  static absl::StatusOr<std::unique_ptr<NameServer>> Start();
  ~NameServer();

  const std::string& address() const { return address_; }  // "127.0.0.1:PORT".

  // From now on. Each is "A.B.C.D".
  void SetAddresses(std::vector<std::string> addresses);

 private:
  explicit NameServer(UniqueFd socket) : socket_(std::move(socket)) {}
  void Serve();
  // Empty for what is no question.
  std::string Answer(const std::string& query);

  const UniqueFd socket_;
  std::string address_;
  absl::Mutex mutex_;
  std::vector<std::string> addresses_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_E2E_NAME_SERVER_H_
