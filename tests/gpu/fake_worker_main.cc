// SPDX-License-Identifier: Apache-2.0
// gemmd-worker-fake: the worker on a FakeDevice, for fault tests (gemmd --worker_binary=.../gemmd-worker-fake). Takes
// the flags of gemmd-worker, so that gemmd can start it, and those that script the device.
#include "gpu/worker.h"
#include "gpu/worker_process.h"
#include "proto/log.h"
#include "tests/gpu/fake_cuda.h"
#include "tests/gpu/fake_device.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include <spdlog/spdlog.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

ABSL_FLAG(int, control_fd, -1, "As gemmd-worker's.");
ABSL_FLAG(std::string, device, "cpu", "What the device says that it is.");
ABSL_FLAG(bool, list_gpus, false, "As gemmd-worker's: lists the GPUs of the fake CUDA driver.");
ABSL_FLAG(int, threads, 0, "Taken and ignored.");
ABSL_FLAG(bool, merging, true, "As gemmd-worker's.");
ABSL_FLAG(uint32_t, spin_us, 0, "As gemmd-worker's.");
ABSL_FLAG(uint32_t, queue_limit, 4096, "As gemmd-worker's.");
ABSL_FLAG(std::string, kernel_cache_dir, "", "Taken and ignored.");
ABSL_FLAG(std::string, log_level, "warning", "As gemmd-worker's.");
ABSL_FLAG(int, loop_cpu, -1, "As gemmd-worker's.");
ABSL_FLAG(std::string, log_format, "text", "As gemmd-worker's.");

ABSL_FLAG(uint64_t, delay_us, 0, "Time of each batch.");
ABSL_FLAG(std::string, hold_file, "",
          "No batch is answered while this file exists; FILE.held appears once there is one; empty: none.");
ABSL_FLAG(uint64_t, fail_every, 0, "Each so-many-th job fails; 0: none.");
ABSL_FLAG(uint64_t, exit_after_jobs, 0, "The process ends in the middle of this job; 0: never.");
ABSL_FLAG(uint64_t, hang_after_jobs, 0, "From this job on nothing is answered; 0: never.");
ABSL_FLAG(uint64_t, fault_after_jobs, 0, "From this job on the device is beyond repair; 0: never.");
ABSL_FLAG(std::string, prepare_log, "", "File that gets a line for each prepared shape.");
ABSL_FLAG(uint64_t, prepare_delay_us, 0, "Time of each prepared shape.");
ABSL_FLAG(bool, refuse_prepare, false, "No shape is prepared.");
ABSL_FLAG(int, fill, -1, "Byte that outputs are filled with; -1: left alone.");

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("gemmd-worker on a device that computes nothing, for tests.");
  absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_list_gpus)) {
    for (const char* gpu : gemmd::testing::kFakeGpus) std::printf("%s Fake GPU\n", gpu);
    return 0;
  }
  gemmd::StartLog("gemmd-worker-fake", gemmd::ParseLogFormat(absl::GetFlag(FLAGS_log_format)).value(),
                  gemmd::ParseLogLevel(absl::GetFlag(FLAGS_log_level)).value());
  if (!gemmd::DieWithParent().ok()) return 0;
  absl::StatusOr<gemmd::UniqueFd> socket = gemmd::TakeControlSocket(absl::GetFlag(FLAGS_control_fd));
  if (!socket.ok()) {
    spdlog::error("{}", socket.status().ToString());
    return 2;
  }
  gemmd::testing::FakeScript script;
  script.device = absl::GetFlag(FLAGS_device);
  script.delay_ns = absl::GetFlag(FLAGS_delay_us) * 1000;
  script.hold_file = absl::GetFlag(FLAGS_hold_file);
  script.fail_every = absl::GetFlag(FLAGS_fail_every);
  script.exit_after_jobs = absl::GetFlag(FLAGS_exit_after_jobs);
  script.hang_after_jobs = absl::GetFlag(FLAGS_hang_after_jobs);
  script.fault_after_jobs = absl::GetFlag(FLAGS_fault_after_jobs);
  script.prepare_log = absl::GetFlag(FLAGS_prepare_log);
  script.prepare_delay_ns = absl::GetFlag(FLAGS_prepare_delay_us) * 1000;
  script.refuse_prepare = absl::GetFlag(FLAGS_refuse_prepare);
  script.fill = absl::GetFlag(FLAGS_fill);
  gemmd::testing::FakeDevice device(script);
  gemmd::WorkerOptions options;
  options.spin_ns = uint64_t{absl::GetFlag(FLAGS_spin_us)} * 1000;
  options.loop_cpu = absl::GetFlag(FLAGS_loop_cpu);
  options.limits.merging = absl::GetFlag(FLAGS_merging);
  options.limits.max_queued_jobs = absl::GetFlag(FLAGS_queue_limit);
  const absl::StatusOr<gemmd::WorkerCounters> counters = gemmd::WorkerCounters::Create();
  if (!counters.ok()) {
    spdlog::error("{}", counters.status().ToString());
    return 2;
  }
  return gemmd::RunWorkerProcess(device, *counters, *std::move(socket), options);
}
