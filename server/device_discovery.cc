// SPDX-License-Identifier: Apache-2.0
#include "server/device_discovery.h"

#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

constexpr char kGpuPrefix[] = "GPU-";

struct ListingProcess {
  pid_t pid = 0;
  UniqueFd output;
};

absl::StatusOr<ListingProcess> StartListing(const std::string& worker_binary) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  ListingProcess process;
  process.output = UniqueFd(ends[0]);
  const UniqueFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  std::string binary = worker_binary;
  std::string flag = "--list_gpus";
  char* arguments[] = {binary.data(), flag.data(), nullptr};
  const int error = posix_spawn(&process.pid, binary.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return absl::ErrnoToStatus(error, absl::StrCat("cannot run ", worker_binary));
  return process;
}

// Everything up to the end of the output.
absl::StatusOr<std::string> ReadAll(int fd, absl::Time deadline) {
  std::string text;
  char buffer[4096];
  while (true) {
    pollfd readable{fd, POLLIN, 0};
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left_ms <= 0 || poll(&readable, 1, static_cast<int>(left_ms)) == 0) {
      return absl::DeadlineExceededError("the worker program did not list its GPUs in time");
    }
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count == 0) return text;
    if (count < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "reading the worker program's list of GPUs");
    if (count > 0) text.append(buffer, static_cast<size_t>(count));
  }
}

absl::StatusOr<std::string> ListGpus(const std::string& worker_binary, absl::Duration timeout) {
  absl::StatusOr<ListingProcess> process = StartListing(worker_binary);
  if (!process.ok()) return process.status();
  absl::StatusOr<std::string> text = ReadAll(process->output.get(), absl::Now() + timeout);
  if (!text.ok()) kill(process->pid, SIGKILL);
  int status = 0;
  waitpid(process->pid, &status, 0);
  if (text.ok() && text->empty()) {
    return absl::UnavailableError(absl::StrCat("the worker program ended with wait status ", status));
  }
  return text;
}

}  // namespace

DeviceSupport FindDevices(const std::string& worker_binary, absl::Duration timeout) {
  DeviceSupport support;
  const absl::StatusOr<std::string> text = ListGpus(worker_binary, timeout);
  if (!text.ok()) {
    support.why_no_gpu = std::string(text.status().message());
    return support;
  }
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipWhitespace())) {
    const std::pair<absl::string_view, absl::string_view> words = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (absl::StartsWith(words.first, kGpuPrefix)) {
      support.gpus.emplace_back(words.first);
    } else {
      support.why_no_gpu = std::string(absl::StripAsciiWhitespace(line));
    }
  }
  return support;
}

}  // namespace gemmd
