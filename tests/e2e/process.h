// SPDX-License-Identifier: Apache-2.0
// Real processes for end-to-end and fault tests and benchmarks: start a program, read its output, send signals, wait
// with a deadline. Everything lives in a temporary directory of its own; nothing uses a fixed port or path.
#ifndef GEMMD_TESTS_E2E_PROCESS_H_
#define GEMMD_TESTS_E2E_PROCESS_H_

#include "proto/unique_fd.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include <memory>
#include <string>
#include <sys/types.h>
#include <vector>

namespace gemmd::testing {

// A directory under /tmp that is removed with its content on destruction.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The folder where the build leaves programs.
std::string BinaryDirectory();

// A child process whose standard output we read. Killed and reaped on destruction.
class ChildProcess {
 public:
  // Starts `arguments[0]`. Standard input is a pipe that we hold open; standard error is ours, or the file.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::vector<std::string>& arguments,
                                                             const std::string& error_file = "");
  ~ChildProcess();

  pid_t pid() const { return pid_; }

  // The next line of standard output, without its end. Errors: DEADLINE_EXCEEDED, UNAVAILABLE (end of output).
  absl::StatusOr<std::string> ReadLine(absl::Duration timeout);

  // Everything up to the end of standard output. Errors: DEADLINE_EXCEEDED.
  absl::StatusOr<std::string> ReadAll(absl::Duration timeout);

  void CloseInput() { input_.Reset(); }
  void Signal(int signal_number) const;

  // The wait status as from waitpid. Errors: DEADLINE_EXCEEDED.
  absl::StatusOr<int> WaitForExit(absl::Duration timeout);

 private:
  ChildProcess() = default;
  absl::Status FillBuffer(absl::Time deadline);

  pid_t pid_ = -1;
  bool reaped_ = false;
  int wait_status_ = 0;
  UniqueFd input_;
  UniqueFd output_;
  std::string buffer_;
};

struct ProgramResult {
  int exit_status = -1;  // -1: a signal ended it.
  std::string output;    // Standard output and standard error, as they came.
};

// Runs a program to its end. Errors: DEADLINE_EXCEEDED (it is killed then).
absl::StatusOr<ProgramResult> RunProgram(std::vector<std::string> arguments, absl::Duration timeout);

// The content of a file, written so that a reader sees the old or the new one.
absl::Status ReplaceFile(const std::string& path, absl::string_view content);

// Open descriptors of a process.
int OpenDescriptors(pid_t pid);
// Mappings of memory that it shares with others (memfd and POSIX shared memory).
int SharedMappings(pid_t pid);
// Its resident memory that is its own (RssAnon), in bytes; -1: it is gone.
int64_t AnonymousBytes(pid_t pid);

struct DaemonOptions {
  std::vector<std::string> flags;  // Added after the defaults, so they win.
  bool tcp = false;                // Also listen on a free loopback port.
  bool keep_log = false;           // Standard error goes to a file, for Log().
  std::string tcp_listen = {};     // Also listen on this HOST:PORT instead; metrics are on a free port of HOST.
  // Put before the program, for example to run it in a network namespace. Must exec it.
  std::vector<std::string> launcher = {};
};

// A gemmd with its workers, in a temporary directory, ready for requests. The workers run on the CPU, or on what
// GEMMD_TEST_WORKERS says (as --workers).
class Daemon {
 public:
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options = {});
  // Kills what is left.
  ~Daemon() = default;

  std::string address() const { return "unix:" + socket_path(); }  // For gRPC.
  std::string socket_path() const { return directory_.path() + "/run/gemmd.sock"; }
  const std::string& tcp_address() const { return tcp_address_; }          // "127.0.0.1:PORT"; empty without tcp.
  const std::string& metrics_address() const { return metrics_address_; }  // "127.0.0.1:PORT".
  const std::string& device() const { return device_; }                    // What its workers run on: "cpu".
  ChildProcess& process() { return *process_; }

  // What the metrics listener answers, head and body.
  absl::StatusOr<std::string> Http(absl::string_view method, absl::string_view path) const;
  // The page of metrics.
  absl::StatusOr<std::string> Metrics() const { return Http("GET", "/metrics"); }
  // What was logged so far, with keep_log.
  std::string Log() const;
  // The value of one series as it stands in the page ("name{label=\"x\"}"), or an error if it is not there.
  absl::StatusOr<double> Metric(const std::string& series) const;
  // Open descriptors of the daemon.
  int OpenDescriptors() const { return testing::OpenDescriptors(process_->pid()); }
  // Process ids of its children.
  std::vector<pid_t> WorkerPids() const;

 private:
  Daemon() = default;

  TemporaryDirectory directory_;
  std::string tcp_address_;
  std::string metrics_address_;
  std::string device_;
  std::unique_ptr<ChildProcess> process_;
};

// Whether the process is there and not a zombie.
bool IsRunning(pid_t pid);

// Calls `condition` every few milliseconds until it is true; false if `timeout` passes first.
template <typename Condition>
bool WaitUntil(absl::Duration timeout, Condition condition) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

}  // namespace gemmd::testing

#endif  // GEMMD_TESTS_E2E_PROCESS_H_
