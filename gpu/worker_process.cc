// SPDX-License-Identifier: Apache-2.0
#include "gpu/worker_process.h"

#include "gpu/control.h"
#include "gpu/region_table.h"
#include "proto/control.h"

#include "absl/strings/str_cat.h"
#include <spdlog/spdlog.h>

#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <memory>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

// A device that does not finish its batches in this time when nobody waits for them any more is not waited for either:
// the alarm's signal ends the process.
constexpr unsigned kExitSeconds = 5;

}  // namespace

absl::Status DieWithParent() {
  const pid_t parent = getppid();
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return absl::ErrnoToStatus(errno, "PR_SET_PDEATHSIG");
  // A parent that died before prctl sends no signal. If it died even before getppid, the control socket is at its end.
  if (getppid() != parent) return absl::UnavailableError("the parent process is gone");
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> TakeControlSocket(int fd) {
  int type = 0;
  socklen_t length = sizeof(type);
  if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_SEQPACKET) {
    return absl::InvalidArgumentError(
        absl::StrCat("--control_fd: expected an inherited SOCK_SEQPACKET socket, got descriptor ", fd));
  }
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "--control_fd");
  return UniqueFd(fd);
}

int RunWorkerProcess(Device& device, const WorkerCounters& counters, UniqueFd control_socket,
                     const WorkerOptions& options) {
  for (size_t i = 0; i < kProductTypes; ++i) SetGauge(counters.gauges().peak_flops[i], device.traits().peak_flops[i]);
  SetGauge(counters.gauges().peak_memory_bytes, device.traits().peak_memory_bytes);
  RegionTable regions;
  Worker worker(device, regions, counters, options);
  absl::StatusOr<std::unique_ptr<Control>> control =
      Control::Create(std::move(control_socket), device, regions, worker, counters);
  if (!control.ok()) {
    spdlog::error("control socket: {}", control.status().ToString());
    return kExitProtocolError;
  }
  if (!(*control)->SendHello().ok()) return 0;  // The front end has gone; so do we.
  spdlog::info("serving device={} name=\"{}\"", device.traits().device, device.traits().name);

  std::atomic<bool> protocol_error{false};
  std::thread control_thread([&] {
    pthread_setname_np(pthread_self(), "gemmd-control");
    if (const absl::Status status = (*control)->Serve(); !status.ok()) {
      spdlog::error("control socket: {}", status.ToString());
      protocol_error = true;
    }
    worker.Stop();
  });
  pthread_setname_np(pthread_self(), "gemmd-loop");
  int exit_status = worker.Run();
  if (exit_status == kExitProtocolError) spdlog::error("job ring: the front end published an impossible position");
  if (exit_status == kExitDeviceFault) spdlog::error("device fault: {}", device.Healthy().ToString());
  (*control)->Stop();
  control_thread.join();
  if (protocol_error) exit_status = kExitProtocolError;

  alarm(kExitSeconds);
  device.Wait();
  return exit_status;
}

}  // namespace gemmd
