// SPDX-License-Identifier: Apache-2.0
#include "tests/e2e/process.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include <arpa/inet.h>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <netinet/in.h>
#include <poll.h>
#include <sstream>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

extern char** environ;

namespace gemmd::testing {
namespace {

// Generous: sanitizer builds on two busy cores start slowly.
constexpr absl::Duration kStartTimeout = absl::Seconds(60);

int PollMilliseconds(absl::Time deadline) {
  const absl::Duration left = deadline - absl::Now();
  if (left <= absl::ZeroDuration()) return 0;
  return static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))));
}

// The CPU, unless the environment asks for another device.
std::string Workers() {
  const char* const workers = std::getenv("GEMMD_TEST_WORKERS");
  return workers == nullptr ? "cpu" : workers;
}

// After fork: system calls only. The child dies with the thread that started it, so that a test that crashes leaves
// nothing behind which holds its output open.
[[noreturn]] void ExecChild(char* const* arguments, int input, int output, int error, int failure) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(error, STDERR_FILENO);
  execv(arguments[0], arguments);
  const int failed_with = errno;
  (void)!write(failure, &failed_with, sizeof(failed_with));
  _exit(127);
}

// "key=value" from the ready line; values end at the next " key=".
std::string ReadyValue(absl::string_view line, absl::string_view key) {
  const size_t start = line.find(absl::StrCat(key, "="));
  if (start == absl::string_view::npos) return "";
  absl::string_view rest = line.substr(start + key.size() + 1);
  const size_t next = rest.find('=');
  if (next == absl::string_view::npos) return std::string(rest);
  rest = rest.substr(0, next);
  return std::string(absl::StripSuffix(rest.substr(0, rest.rfind(' ')), " "));
}

}  // namespace

TemporaryDirectory::TemporaryDirectory() {
  std::string name = "/tmp/gemmd-test-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

// Tests lie in tests/bin, beside bin, wherever the tree of programs was copied to.
std::string BinaryDirectory() {
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  if (std::filesystem::exists(here / "gemmd")) return here.string();
  return (here.parent_path().parent_path() / "bin").string();
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const std::vector<std::string>& arguments,
                                                                  const std::string& error_file) {
  int input[2];
  int output[2];
  if (pipe2(input, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  UniqueFd input_read(input[0]);
  UniqueFd input_write(input[1]);
  if (pipe2(output, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  UniqueFd output_read(output[0]);
  UniqueFd output_write(output[1]);
  UniqueFd error_write;
  if (!error_file.empty()) {
    error_write = UniqueFd(open(error_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!error_write.valid()) return absl::ErrnoToStatus(errno, error_file);
  }
  const int error_fd = error_write.valid() ? error_write.get() : STDERR_FILENO;

  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int failure[2];
  if (pipe2(failure, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const UniqueFd failure_read(failure[0]);
  UniqueFd failure_write(failure[1]);
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) ExecChild(argv.data(), input_read.get(), output_write.get(), error_fd, failure_write.get());
  failure_write.Reset();
  int error = 0;
  if (read(failure_read.get(), &error, sizeof(error)) == sizeof(error)) {
    waitpid(pid, nullptr, 0);
    return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", arguments[0]));
  }

  std::unique_ptr<ChildProcess> child(new ChildProcess());
  child->pid_ = pid;
  child->input_ = std::move(input_write);
  child->output_ = std::move(output_read);
  return child;
}

ChildProcess::~ChildProcess() {
  if (reaped_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

absl::Status ChildProcess::FillBuffer(absl::Time deadline) {
  pollfd ready{output_.get(), POLLIN, 0};
  const int count = poll(&ready, 1, PollMilliseconds(deadline));
  if (count < 0 && errno == EINTR) return absl::OkStatus();
  if (count == 0) return absl::DeadlineExceededError(absl::StrCat("no output in time; so far: ", buffer_));
  char bytes[4096];
  const ssize_t size = read(output_.get(), bytes, sizeof(bytes));
  if (size <= 0) return absl::UnavailableError(absl::StrCat("end of output; unread: ", buffer_));
  buffer_.append(bytes, static_cast<size_t>(size));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ChildProcess::ReadLine(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  size_t end = buffer_.find('\n');
  while (end == std::string::npos) {
    if (absl::Status status = FillBuffer(deadline); !status.ok()) return status;
    end = buffer_.find('\n');
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return line;
}

absl::StatusOr<std::string> ChildProcess::ReadAll(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    const absl::Status status = FillBuffer(deadline);
    if (absl::IsUnavailable(status)) return std::exchange(buffer_, "");
    if (!status.ok()) return status;
  }
}

void ChildProcess::Signal(int signal_number) const {
  if (!reaped_) kill(pid_, signal_number);
}

absl::StatusOr<int> ChildProcess::WaitForExit(absl::Duration timeout) {
  const bool exited = WaitUntil(timeout, [this] {
    if (!reaped_ && waitpid(pid_, &wait_status_, WNOHANG) == pid_) reaped_ = true;
    return reaped_;
  });
  if (!exited) return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " still runs"));
  return wait_status_;
}

absl::StatusOr<ProgramResult> RunProgram(std::vector<std::string> arguments, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  arguments.insert(arguments.begin(), {"/bin/sh", "-c", R"(exec "$0" "$@" 2>&1)"});
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Start(arguments);
  if (!process.ok()) return process.status();
  absl::StatusOr<std::string> output = (*process)->ReadAll(timeout);
  if (!output.ok()) return output.status();
  const absl::StatusOr<int> status = (*process)->WaitForExit(deadline - absl::Now());
  if (!status.ok()) return status.status();
  return ProgramResult{WIFEXITED(*status) ? WEXITSTATUS(*status) : -1, *std::move(output)};
}

absl::Status ReplaceFile(const std::string& path, absl::string_view content) {
  const std::string fresh = path + ".new";
  std::ofstream stream(fresh, std::ios::binary | std::ios::trunc);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
  stream.close();
  if (!stream) return absl::UnknownError(absl::StrCat("cannot write ", fresh));
  if (rename(fresh.c_str(), path.c_str()) != 0) return absl::ErrnoToStatus(errno, path);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options) {
  std::unique_ptr<Daemon> daemon(new Daemon());
  std::string listen = daemon->address();
  std::string host = "127.0.0.1";
  if (options.tcp) absl::StrAppend(&listen, ",127.0.0.1:0");
  if (!options.tcp_listen.empty()) {
    absl::StrAppend(&listen, ",", options.tcp_listen);
    host = options.tcp_listen.substr(0, options.tcp_listen.rfind(':'));
  }
  std::vector<std::string> arguments = options.launcher;
  for (const std::string& argument :
       {BinaryDirectory() + "/gemmd", "--listen=" + listen, "--metrics_listen=" + host + ":0", "--workers=" + Workers(),
        std::string("--drain_delay=0s")}) {
    arguments.push_back(argument);
  }
  arguments.insert(arguments.end(), options.flags.begin(), options.flags.end());
  absl::StatusOr<std::unique_ptr<ChildProcess>> process =
      ChildProcess::Start(arguments, options.keep_log ? daemon->directory_.path() + "/log" : "");
  if (!process.ok()) return process.status();
  daemon->process_ = *std::move(process);
  absl::StatusOr<std::string> line = daemon->process_->ReadLine(kStartTimeout);
  if (!line.ok()) return line.status();
  if (!absl::StartsWith(*line, "gemmd ready:")) return absl::InternalError(absl::StrCat("unexpected: ", *line));
  daemon->metrics_address_ = ReadyValue(*line, "metrics");
  daemon->device_ = ReadyValue(*line, "workers");
  for (absl::string_view part : absl::StrSplit(ReadyValue(*line, "listen"), ',')) {
    part = absl::StripAsciiWhitespace(part);
    if (!absl::StartsWith(part, "unix:")) daemon->tcp_address_ = std::string(part);
  }
  return daemon;
}

absl::StatusOr<std::string> Daemon::Http(absl::string_view method, absl::string_view path) const {
  const std::pair<std::string, std::string> host_port = absl::StrSplit(metrics_address_, absl::MaxSplits(':', 1));
  int port = 0;
  if (!absl::SimpleAtoi(host_port.second, &port)) return absl::InternalError("no metrics address");
  const UniqueFd socket_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, host_port.first.c_str(), &address.sin_addr);
  if (connect(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::ErrnoToStatus(errno, "connect to the metrics listener");
  }
  const std::string request = absl::StrCat(method, " ", path, " HTTP/1.0\r\n\r\n");
  if (send(socket_fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) {
    return absl::ErrnoToStatus(errno, "send");
  }
  std::string page;
  char bytes[16384];
  ssize_t size = 0;
  while ((size = read(socket_fd.get(), bytes, sizeof(bytes))) > 0) page.append(bytes, static_cast<size_t>(size));
  return page;
}

std::string Daemon::Log() const {
  std::ifstream file(directory_.path() + "/log");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

absl::StatusOr<double> Daemon::Metric(const std::string& series) const {
  absl::StatusOr<std::string> page = Metrics();
  if (!page.ok()) return page.status();
  for (absl::string_view line : absl::StrSplit(*page, '\n')) {
    if (!absl::ConsumePrefix(&line, series) || !absl::ConsumePrefix(&line, " ")) continue;
    double value = 0;
    if (absl::SimpleAtod(absl::StripAsciiWhitespace(line), &value)) return value;
  }
  return absl::NotFoundError(absl::StrCat("no series ", series));
}

std::vector<pid_t> Daemon::WorkerPids() const {
  std::vector<pid_t> pids;
  for (const auto& task : std::filesystem::directory_iterator(absl::StrCat("/proc/", process_->pid(), "/task"))) {
    std::ifstream children(task.path() / "children");
    pid_t pid = 0;
    while (children >> pid) pids.push_back(pid);
  }
  return pids;
}

int OpenDescriptors(pid_t pid) {
  std::error_code gone;
  int count = 0;
  for (std::filesystem::directory_iterator entry(absl::StrCat("/proc/", pid, "/fd"), gone), end; entry != end;
       entry.increment(gone)) {
    ++count;
  }
  return count;
}

int SharedMappings(pid_t pid) {
  std::ifstream maps(absl::StrCat("/proc/", pid, "/maps"));
  std::string line;
  int count = 0;
  while (std::getline(maps, line)) {
    if (absl::StrContains(line, "/memfd:") || absl::StrContains(line, "/dev/shm/")) ++count;
  }
  return count;
}

int64_t AnonymousBytes(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string line;
  while (std::getline(status, line)) {
    int64_t kibibytes = 0;
    absl::string_view rest = line;
    if (!absl::ConsumePrefix(&rest, "RssAnon:")) continue;
    rest = absl::StripSuffix(absl::StripAsciiWhitespace(rest), " kB");
    if (absl::SimpleAtoi(rest, &kibibytes)) return kibibytes * 1024;
  }
  return -1;
}

bool IsRunning(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string line;
  while (std::getline(status, line)) {
    if (absl::StartsWith(line, "State:")) return !absl::StrContains(line, "Z (zombie)");
  }
  return false;
}

}  // namespace gemmd::testing
