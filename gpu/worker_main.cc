// SPDX-License-Identifier: Apache-2.0
// gemmd-worker: runs the jobs of one device. gemmd starts it, hands it a control socket, and restarts it when it dies.
#include "gpu/cpu/cpu_device.h"
#ifdef GEMMD_WITH_CUDA
#include "gpu/cuda/cuda_device.h"
#endif
#include "gpu/fault_injection.h"
#include "gpu/worker.h"
#include "gpu/worker_process.h"
#include "proto/control.h"
#include "proto/lock_checks.h"
#include "proto/log.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include <spdlog/spdlog.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

ABSL_FLAG(int, control_fd, -1, "Number of the inherited descriptor of the control socket. Set by gemmd.");
ABSL_FLAG(std::string, device, "cpu", "Device to run on: cpu, or the UUID (GPU-...) of a Hopper GPU.");
ABSL_FLAG(bool, list_gpus, false,
          "Print \"UUID NAME\" of every Hopper GPU that a worker can run on, or one line saying why there is none, and "
          "exit.");
ABSL_FLAG(std::string, fault_file, "",
          "For tests: a file that, when it appears, makes the next batch fail: illegal_access or hang.");
ABSL_FLAG(int, threads, 0, "Threads of the CPU device; 0 means all cores that this process may use.");
ABSL_FLAG(std::string, kernel_cache_dir, "",
          "Folder for compiled GPU kernels, shared by all workers; empty keeps them in memory only.");
ABSL_FLAG(bool, merging, true, "Let waiting jobs on the same weights share a launch.");
ABSL_FLAG(uint32_t, spin_us, gemmd::kDefaultSpinNanos / 1000,
          "Microseconds for which the loop spins after a job (on a GPU: its predicted end) before it sleeps, at most "
          "(a quarter where jobs come more "
          "rarely than that); 0 never spins. No effect on one core.");
ABSL_FLAG(int, loop_cpu, -1, "Number of the core that the loop stays on; -1 leaves that to the kernel. Set by gemmd.");
ABSL_FLAG(uint32_t, queue_limit, gemmd::BatchLimits{}.max_queued_jobs,
          "Jobs that may wait; more are refused with RESOURCE_EXHAUSTED.");
ABSL_FLAG(std::string, log_level, "info",
          "Least severe messages to log: trace, debug, info, warning, error, critical, off.");
ABSL_FLAG(std::string, log_format, "text", "Lines on standard error: text or json.");

namespace gemmd {
namespace {

constexpr char kUsage[] =
    "Runs the jobs of one device for gemmd.\n\n"
    "gemmd starts one worker per device by itself and hands it a control socket as --control_fd; there is no need to\n"
    "start one by hand. Exit status: 0 when gemmd closed the socket, 40 device fault, 41 protocol error, 42 no such "
    "device.";

constexpr char kByHand[] =
    "gemmd-worker: expected --control_fd, which gemmd sets when it starts its workers.\n"
    "Start the daemon instead:  gemmd --workers=cpu   (gemmd --help, gemmd-worker --help)\n";

constexpr int kExitUsage = 2;

void ConfigureHelp() {
  absl::FlagsUsageConfig config;
  const auto is_ours = [](absl::string_view file) { return absl::EndsWith(file, "worker_main.cc"); };
  config.contains_help_flags = is_ours;
  config.contains_helpshort_flags = is_ours;
  absl::SetFlagsUsageConfig(config);
  absl::SetProgramUsageMessage(kUsage);
}

#ifdef GEMMD_WITH_CUDA
absl::StatusOr<std::unique_ptr<Device>> OpenGpu(const std::string& uuid, const WorkerCounters& counters) {
  CudaDeviceOptions options;
  options.gpu = uuid;
  options.kernels.cache_directory = absl::GetFlag(FLAGS_kernel_cache_dir);
  options.kernels.counters = &counters;
  return CudaDevice::Open(options);
}
#else
absl::Status NoCuda() {
  return absl::FailedPreconditionError("built without the CUDA device (no CUDA toolkit was found)");
}
absl::StatusOr<std::unique_ptr<Device>> OpenGpu(const std::string&, const WorkerCounters&) { return NoCuda(); }
absl::StatusOr<std::vector<GpuName>> ListHopperGpus() { return NoCuda(); }
#endif

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const std::string& name, const WorkerCounters& counters) {
  if (name == "cpu") return CpuDevice::Open(CpuDeviceOptions{.threads = absl::GetFlag(FLAGS_threads)});
  if (absl::StartsWith(name, "GPU-")) return OpenGpu(name, counters);
  return absl::InvalidArgumentError(absl::StrCat("--device: expected cpu or GPU-UUID, got \"", name, "\""));
}

int ListGpus() {
  const absl::StatusOr<std::vector<GpuName>> gpus = ListHopperGpus();
  if (!gpus.ok()) {
    std::printf("%s\n", std::string(gpus.status().message()).c_str());
    return kExitNoDevice;
  }
  for (const GpuName& gpu : *gpus) std::printf("%s %s\n", gpu.uuid.c_str(), gpu.name.c_str());
  return 0;
}

int Main() {
  const absl::StatusOr<LogFormat> format = ParseLogFormat(absl::GetFlag(FLAGS_log_format));
  const absl::StatusOr<spdlog::level::level_enum> level = ParseLogLevel(absl::GetFlag(FLAGS_log_level));
  if (!format.ok() || !level.ok()) {
    const absl::Status& wrong = format.ok() ? level.status() : format.status();
    std::fprintf(stderr, "gemmd-worker: --%s\n", std::string(wrong.message()).c_str());
    return kExitUsage;
  }
  StartLog("gemmd-worker", *format, *level);
  if (absl::GetFlag(FLAGS_list_gpus)) return ListGpus();
  if (absl::GetFlag(FLAGS_control_fd) < 0) {
    std::fputs(kByHand, stderr);
    return kExitUsage;
  }
  if (const absl::Status status = DieWithParent(); !status.ok()) return 0;
  absl::StatusOr<UniqueFd> socket = TakeControlSocket(absl::GetFlag(FLAGS_control_fd));
  if (!socket.ok()) {
    spdlog::error("{}", socket.status().ToString());
    return kExitUsage;
  }
  const absl::StatusOr<WorkerCounters> counters = WorkerCounters::Create();
  if (!counters.ok()) {
    spdlog::error("counters: {}", counters.status().ToString());
    return kExitUsage;
  }
  absl::StatusOr<std::unique_ptr<Device>> device = OpenDevice(absl::GetFlag(FLAGS_device), *counters);
  if (!device.ok()) {
    spdlog::error("{}", device.status().ToString());
    return kExitNoDevice;
  }
  WorkerOptions options;
  options.spin_ns = uint64_t{absl::GetFlag(FLAGS_spin_us)} * 1000;
  constexpr uint64_t kSpinBesideGpuNanos = 1'000'000;
  if (absl::GetFlag(FLAGS_device) != "cpu") options.spin_beside_ns = kSpinBesideGpuNanos;
  options.loop_cpu = absl::GetFlag(FLAGS_loop_cpu);
  options.limits.merging = absl::GetFlag(FLAGS_merging);
  options.limits.max_queued_jobs = absl::GetFlag(FLAGS_queue_limit);
  options.faults = FaultInjection(absl::GetFlag(FLAGS_fault_file));
  const int status = RunWorkerProcess(**device, *counters, *std::move(socket), options);
  // Nothing of a broken device is worth an orderly end, which waits for compiles under way.
  if (status == kExitDeviceFault) _exit(status);
  return status;
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  gemmd::DropLockOrderChecks();
  gemmd::ConfigureHelp();
  absl::ParseCommandLine(argc, argv);
  return gemmd::Main();
}
