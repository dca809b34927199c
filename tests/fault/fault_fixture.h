// SPDX-License-Identifier: Apache-2.0
// A daemon with a client, and what fault tests do with them.
#ifndef GEMMD_TESTS_FAULT_FAULT_FIXTURE_H_
#define GEMMD_TESTS_FAULT_FAULT_FIXTURE_H_

#include "client/client.h"
#include "client/problem.h"
#include "tests/e2e/process.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"

#include <memory>
#include <string>
#include <vector>

namespace gemmd::testing {

// How soon a worker must serve again.
inline constexpr absl::Duration kRecovery = absl::Seconds(2);
// Under a sanitizer a process takes several times as long to start.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr absl::Duration kAllowed = absl::Seconds(20);
#else
inline constexpr absl::Duration kAllowed = kRecovery;
#endif

struct Fixture {
  std::unique_ptr<Daemon> daemon;
  std::unique_ptr<Client> client;
};
Fixture StartAll(const DaemonOptions& options = {});

// A program in `directory` that is `worker` (gemmd-worker, gemmd-worker-fake) with more flags, for --worker_binary.
std::string WorkerWithFlags(const TemporaryDirectory& directory, const std::string& worker,
                            const std::vector<std::string>& flags);

// A worker that meets a fault when it is told to.
class FaultyWorker {
 public:
  // The flag of gemmd that makes it use this worker.
  std::string Flag() const;
  // The next batch meets this fault: "illegal_access" or "hang".
  void Inject(const std::string& fault) const;

 private:
  std::string FaultFile() const { return directory_.path() + "/fault"; }
  TemporaryDirectory directory_;
};

std::unique_ptr<Problem> MakeProblem(Client* client, const ProblemSpec& spec, Transport transport);

// Runs the request until it succeeds; the time since `start`. Anything but UNAVAILABLE on the way fails the test.
absl::Duration TimeToSuccess(Client& client, const v1::RunRequest& request, absl::Time start,
                             v1::RunResponse* response);

// How many of `count` requests that are sent at once got which answer.
struct Answers {
  int ok = 0;
  int unavailable = 0;
  int other = 0;
};
Answers RunMany(Client& client, const v1::RunRequest& request, int count);

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_FAULT_FAULT_FIXTURE_H_
