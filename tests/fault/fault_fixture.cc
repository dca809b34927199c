// SPDX-License-Identifier: Apache-2.0
#include "tests/fault/fault_fixture.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <utility>

namespace gemmd::testing {

Fixture StartAll(const DaemonOptions& options) {
  Fixture fixture;
  auto daemon = Daemon::Start(options);
  EXPECT_TRUE(daemon.ok()) << daemon.status();
  fixture.daemon = *std::move(daemon);
  auto client = Client::Connect(fixture.daemon->address());
  EXPECT_TRUE(client.ok()) << client.status();
  fixture.client = *std::move(client);
  return fixture;
}

std::string WorkerWithFlags(const TemporaryDirectory& directory, const std::string& worker,
                            const std::vector<std::string>& flags) {
  const std::string path = directory.path() + "/worker";
  std::ofstream script(path);
  script << "#!/bin/sh\nexec " << BinaryDirectory() << "/" << worker << " \"$@\"";
  for (const std::string& flag : flags) script << " '" << flag << "'";
  script << "\n";
  script.close();
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  return path;
}

std::string FaultyWorker::Flag() const {
  return "--worker_binary=" + WorkerWithFlags(directory_, "gemmd-worker", {"--fault_file=" + FaultFile()});
}

void FaultyWorker::Inject(const std::string& fault) const {
  // Appears whole.
  const std::string draft = FaultFile() + ".draft";
  std::ofstream(draft) << fault;
  ASSERT_EQ(std::rename(draft.c_str(), FaultFile().c_str()), 0);
}

std::unique_ptr<Problem> MakeProblem(Client* client, const ProblemSpec& spec, Transport transport) {
  auto weights = Weights::Create(client, spec, transport, 3);
  EXPECT_TRUE(weights.ok()) << weights.status();
  auto problem = Problem::Create(client, spec, transport, *weights, 5);
  EXPECT_TRUE(problem.ok()) << problem.status();
  return *std::move(problem);
}

absl::Duration TimeToSuccess(Client& client, const v1::RunRequest& request, absl::Time start,
                             v1::RunResponse* response) {
  for (;;) {
    const auto result = client.Run(request);
    if (result.ok()) {
      *response = *result;
      return absl::Now() - start;
    }
    EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
    if (absl::Now() - start > 10 * kAllowed) return absl::Now() - start;
    absl::SleepFor(absl::Milliseconds(5));
  }
}

Answers RunMany(Client& client, const v1::RunRequest& request, int count) {
  absl::Mutex mutex;
  Answers answers;
  int left = count;
  for (int i = 0; i < count; ++i) {
    client.RunAsync(request, {}, [&](const absl::StatusOr<v1::RunResponse>& response) {
      absl::MutexLock lock(&mutex);
      ++(response.ok() ? answers.ok : absl::IsUnavailable(response.status()) ? answers.unavailable : answers.other);
      --left;
    });
  }
  absl::MutexLock lock(&mutex);
  mutex.Await(absl::Condition(
      +[](int* waiting) { return *waiting == 0; }, &left));
  return answers;
}

}  // namespace gemmd::testing
