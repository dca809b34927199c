// SPDX-License-Identifier: Apache-2.0
#include "server/supervisor.h"

#include "proto/control.h"
#include "proto/job_ring.h"

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

// The control socket's number in the worker: the first after stderr.
constexpr int kControlFd = 3;
// A process whose exec failed, as far as the policy is concerned: worth another try, since it may be memory.
constexpr int kCouldNotStart = 127;

// Owns the attributes of posix_spawn: an empty signal mask (ours blocks the signals that it waits for), and a process
// group of its own, so that Ctrl-C in a terminal drains the front end instead of killing the worker under it.
class SpawnSettings {
 public:
  explicit SpawnSettings(int control_socket) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, control_socket, kControlFd);
    posix_spawn_file_actions_addclosefrom_np(&actions_, kControlFd + 1);
    posix_spawnattr_init(&attributes_);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes_, &none);
    sigset_t all;
    sigfillset(&all);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setpgroup(&attributes_, 0);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  const posix_spawn_file_actions_t* actions() const { return &actions_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

struct StartedProcess {
  pid_t pid = 0;
  UniqueFd pidfd;
  UniqueFd socket;
};

absl::StatusOr<StartedProcess> Spawn(const std::string& binary, const std::vector<std::string>& flags) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return absl::ErrnoToStatus(errno, "socketpair");
  StartedProcess started;
  started.socket = UniqueFd(ends[0]);
  const UniqueFd worker_end(ends[1]);
  const SpawnSettings settings(worker_end.get());
  std::vector<std::string> words = flags;
  words.insert(words.begin(), binary);
  words.push_back(absl::StrCat("--control_fd=", kControlFd));
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const int error =
      posix_spawn(&started.pid, binary.c_str(), settings.actions(), settings.attributes(), arguments.data(), environ);
  if (error != 0) return absl::ErrnoToStatus(error, "posix_spawn");
  started.pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, started.pid, 0)));
  if (!started.pidfd.valid()) {
    const int open_error = errno;
    kill(started.pid, SIGKILL);
    waitpid(started.pid, nullptr, 0);
    return absl::ErrnoToStatus(open_error, "pidfd_open");
  }
  return started;
}

// Negative for a signal.
int ExitStatusOf(int wait_status) { return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -WTERMSIG(wait_status); }

}  // namespace

Supervisor::Supervisor(SupervisorOptions options, Events events)
    : options_(std::move(options)), events_(std::move(events)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  for (size_t i = 0; i < options_.workers.size(); ++i) workers_.emplace_back(options_.restart);
}

Supervisor::~Supervisor() {
  BeginStop();
  if (thread_.joinable()) thread_.join();
}

void Supervisor::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Supervisor::BeginStop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  Wake();
}

void Supervisor::ReportReady(int worker) {
  {
    absl::MutexLock lock(&mutex_);
    ready_.push_back(worker);
  }
  Wake();
}

void Supervisor::ReportHung(int worker) {
  {
    absl::MutexLock lock(&mutex_);
    hung_.push_back(worker);
  }
  Wake();
}

void Supervisor::ReportLost(int worker) {
  {
    absl::MutexLock lock(&mutex_);
    lost_.push_back(worker);
  }
  Wake();
}

void Supervisor::Wake() {
  const uint64_t one = 1;
  // Fails only if the counter is full, and then the thread wakes anyway.
  (void)!write(wake_.get(), &one, sizeof(one));
}

bool Supervisor::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void Supervisor::Run() {
  const uint64_t start_ns = MonotonicNanos();
  for (Worker& worker : workers_) worker.start_at_ns = start_ns;
  while (!stopping()) {
    const uint64_t now_ns = MonotonicNanos();
    HandleReports(now_ns);
    ReapEnded(now_ns);
    HandleTimers(now_ns);
    WaitForNews(now_ns);
  }
  StopAll();
}

void Supervisor::HandleReports(uint64_t now_ns) {
  std::vector<int> ready;
  std::vector<int> hung;
  std::vector<int> lost;
  {
    absl::MutexLock lock(&mutex_);
    ready.swap(ready_);
    hung.swap(hung_);
    lost.swap(lost_);
  }
  for (int index : ready) workers_[static_cast<size_t>(index)].kill_at_ns = 0;
  for (int index : hung) {
    Worker& worker = workers_[static_cast<size_t>(index)];
    if (worker.pid == 0) continue;
    worker.kill_at_ns = now_ns;
    worker.kill_reason = RestartReason::kHang;
  }
  for (int index : lost) {
    Worker& worker = workers_[static_cast<size_t>(index)];
    if (worker.pid == 0 || worker.killed) continue;
    worker.kill_at_ns = now_ns + options_.exit_grace_ns;
    worker.kill_reason = RestartReason::kHang;
  }
}

void Supervisor::HandleTimers(uint64_t now_ns) {
  for (size_t i = 0; i < workers_.size(); ++i) {
    Worker& worker = workers_[i];
    if (worker.start_at_ns != 0 && worker.start_at_ns <= now_ns) StartWorker(static_cast<int>(i), now_ns);
    if (worker.pid != 0 && worker.kill_at_ns != 0 && worker.kill_at_ns <= now_ns) {
      spdlog::error("worker {}: pid {} did not answer in time, killed", i, worker.pid);
      kill(worker.pid, SIGKILL);
      worker.kill_at_ns = 0;
      worker.killed = true;
    }
  }
}

void Supervisor::WaitForNews(uint64_t now_ns) {
  std::vector<pollfd> watched{{wake_.get(), POLLIN, 0}};
  uint64_t next_ns = 0;
  for (const Worker& worker : workers_) {
    if (worker.pid != 0) watched.push_back({worker.pidfd.get(), POLLIN, 0});
    for (uint64_t timer_ns : {worker.start_at_ns, worker.kill_at_ns}) {
      if (timer_ns != 0 && (next_ns == 0 || timer_ns < next_ns)) next_ns = timer_ns;
    }
  }
  int timeout_ms = -1;
  if (next_ns != 0) timeout_ms = next_ns <= now_ns ? 0 : static_cast<int>((next_ns - now_ns) / 1'000'000 + 1);
  poll(watched.data(), watched.size(), timeout_ms);
  uint64_t ignored = 0;
  (void)!read(wake_.get(), &ignored, sizeof(ignored));
}

void Supervisor::ReapEnded(uint64_t now_ns) {
  for (size_t i = 0; i < workers_.size(); ++i) {
    Worker& worker = workers_[i];
    int status = 0;
    if (worker.pid == 0 || waitpid(worker.pid, &status, WNOHANG) != worker.pid) continue;
    const pid_t pid = worker.pid;
    worker.pid = 0;
    worker.pidfd.Reset();
    worker.kill_at_ns = 0;
    const int exit_status = ExitStatusOf(status);
    if (exit_status >= 0) {
      spdlog::error("worker {}: pid {} exited with status {}", i, pid, exit_status);
    } else {
      spdlog::error("worker {}: pid {} ended by signal {}", i, pid, -exit_status);
    }
    HandleEnd(static_cast<int>(i), exit_status, now_ns);
  }
}

void Supervisor::StartWorker(int index, uint64_t now_ns) {
  Worker& worker = workers_[static_cast<size_t>(index)];
  worker.start_at_ns = 0;
  absl::StatusOr<StartedProcess> started = Spawn(options_.worker_binary, options_.workers[static_cast<size_t>(index)]);
  if (!started.ok()) {
    spdlog::error("worker {}: cannot be started: {}", index, started.status().ToString());
    worker.killed = false;
    HandleEnd(index, kCouldNotStart, now_ns);
    return;
  }
  worker.pid = started->pid;
  worker.pidfd = std::move(started->pidfd);
  worker.kill_at_ns = now_ns + options_.start_timeout_ns;
  worker.kill_reason = RestartReason::kStartTimeout;
  worker.killed = false;
  {
    // Reports so far were about its predecessor.
    absl::MutexLock lock(&mutex_);
    std::erase(ready_, index);
    std::erase(hung_, index);
    std::erase(lost_, index);
  }
  events_.on_started(index, worker.pid, std::move(started->socket));
}

void Supervisor::HandleEnd(int index, int exit_status, uint64_t now_ns) {
  Worker& worker = workers_[static_cast<size_t>(index)];
  const RestartDecision decision = worker.policy.OnDeath(now_ns, exit_status);
  if (decision.quarantine) {
    spdlog::error("worker {}: {}; it stays down", index,
                  exit_status == kExitNoDevice ? "there is no such device" : "it died too often");
  } else {
    worker.start_at_ns = decision.restart_at_ns;
  }
  events_.on_ended(index, worker.killed ? worker.kill_reason : RestartReasonOf(exit_status), decision.quarantine);
}

void Supervisor::StopAll() {
  const uint64_t deadline_ns = MonotonicNanos() + options_.exit_grace_ns;
  for (Worker& worker : workers_) {
    if (worker.pid == 0) continue;
    pollfd ended{worker.pidfd.get(), POLLIN, 0};
    const uint64_t now_ns = MonotonicNanos();
    const int timeout_ms = now_ns >= deadline_ns ? 0 : static_cast<int>((deadline_ns - now_ns) / 1'000'000 + 1);
    if (poll(&ended, 1, timeout_ms) == 0) kill(worker.pid, SIGKILL);
    waitpid(worker.pid, nullptr, 0);
    worker.pid = 0;
  }
}

}  // namespace gemmd
