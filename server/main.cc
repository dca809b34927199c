// SPDX-License-Identifier: Apache-2.0
// gemmd: flags, signals, and the life of the daemon.
#include "proto/job.h"
#include "proto/lock_checks.h"
#include "proto/log.h"
#include "server/daemon.h"
#include "server/device_discovery.h"
#include "server/options.h"
#include "server/signals.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "spdlog/spdlog.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <signal.h>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <system_error>
#include <utility>
#include <vector>

ABSL_FLAG(std::string, listen, "unix:/run/gemmd/gemmd.sock",
          "Where gRPC is served: unix:PATH (required; the broker listens on PATH.broker) and any number of HOST:PORT, "
          "separated by commas. Port 0 takes a free one.");
ABSL_FLAG(
    std::string, metrics_listen, "127.0.0.1:9464",
    "HOST:PORT of the Prometheus page /metrics, and of debug pages for this machine (/ lists them); empty: none.");
ABSL_FLAG(
    std::string, workers, "auto",
    "One worker process per device: auto (every Hopper GPU; the CPU if there is none), or a list of cpu, gpu (all "
    "GPUs), gpu:N and GPU-UUID, separated by commas. A GPU that is named twice has two workers.");
ABSL_FLAG(int, worker_threads, 0, "Threads that a CPU worker computes with; 0: one per core.");
ABSL_FLAG(std::string, worker_binary, "", "The worker program; empty: gemmd-worker beside this program.");
ABSL_FLAG(bool, merging, true, "Whether requests that share weights may share a launch.");
ABSL_FLAG(std::string, kernel_cache_dir, "",
          "Where compiled GPU kernels are kept between starts; empty: $CACHE_DIRECTORY, $XDG_CACHE_HOME/gemmd or "
          "~/.cache/gemmd; none: compile at every start.");
ABSL_FLAG(absl::Duration, worker_hang_timeout, gemmd::ServerOptions().worker_hang_timeout,
          "How long a worker may leave requests without finishing any (beyond what their size explains) before it is "
          "killed and started again; 0: forever.");
ABSL_FLAG(
    int, spin_us, -1,
    "Microseconds for which threads that wait for a product, or for the network beside one on a GPU, poll at most; -1: "
    "500 where gemmd may use 8 cores or more (affinity, cgroup), 100 where fewer, and then not for the network; the "
    "workers' loops 400. 0, and on one core: none polls.");
ABSL_FLAG(
    std::string, warmup_manifest, "",
    "JSON file of shapes, the fields of gemmd.v1.WarmUpRequest: {\"shapes\": [{\"op\": \"DENSE\", \"scaling\": "
    "\"SCALING_1D2D\", \"d_dtype\": \"BF16\", \"m\": 0, \"n\": 2112, \"k\": 7168}]}. Every worker prepares them before "
    "gemmd is ready; one that is started again does so while it works.");
ABSL_FLAG(std::string, tensor_dirs, "",
          "Directories whose .safetensors files clients may make tensors from, separated by commas: whoever may open a "
          "session can then read all tensors of all of them; empty: none.");
ABSL_FLAG(std::string, tensor_manifest, "",
          "JSON file of tensors, the fields of gemmd.v1.CreateTensorRequest: {\"tensors\": [{\"name\": \"layer0.w\", "
          "\"file\": {\"path\": \"model.safetensors\", \"tensor\": \"w\"}, \"transpose\": true, \"quantize\": "
          "\"BLOCK_128X128\"}]}. They are there before gemmd is ready, and everybody may name them.");
ABSL_FLAG(absl::Duration, worker_start_timeout, absl::Seconds(60),
          "How long a worker may take to be ready before it is killed and started again.");

ABSL_FLAG(absl::Duration, drain_delay, absl::Seconds(5),
          "On SIGTERM: from health NOT_SERVING to refusing new work, for load balancers to notice.");
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(30), "On SIGTERM: how long accepted work may take to finish.");

ABSL_FLAG(int64_t, max_message_bytes, gemmd::ServerOptions().max_message_bytes,
          "Largest gRPC message, inline operands included.");
ABSL_FLAG(int64_t, arena_bytes, gemmd::ServerOptions().arena_bytes,
          "Memory for inline operands and results of all requests in flight.");
ABSL_FLAG(int, max_concurrent_streams, gemmd::ServerOptions().max_concurrent_streams, "Calls of one connection.");
ABSL_FLAG(absl::Duration, max_connection_age, gemmd::ServerOptions().max_connection_age,
          "After this time, give or take a tenth, a gRPC connection ends as soon as its calls are done: clients that "
          "balance over several servers then look again which there are; inf: never.");
ABSL_FLAG(uint32_t, max_sessions, gemmd::Quotas().sessions, "Open sessions in all.");
ABSL_FLAG(uint32_t, max_sessions_per_uid, gemmd::Quotas().sessions_per_uid, "Open sessions of one user.");
ABSL_FLAG(uint32_t, max_regions_per_session, gemmd::Quotas().regions_per_session, "Regions of one session.");
ABSL_FLAG(uint64_t, max_region_bytes_per_session, gemmd::Quotas().region_bytes_per_session,
          "Bytes of the regions of one session.");
ABSL_FLAG(uint32_t, max_regions_per_uid, gemmd::Quotas().regions_per_uid, "Regions of one user.");
ABSL_FLAG(uint64_t, max_region_bytes_per_uid, gemmd::Quotas().region_bytes_per_uid,
          "Bytes of the regions of one user.");
ABSL_FLAG(uint32_t, max_tensors_per_session, gemmd::Quotas().tensors_per_session, "Resident tensors of one session.");
ABSL_FLAG(uint64_t, max_tensor_bytes_per_session, gemmd::Quotas().tensor_bytes_per_session,
          "Bytes of the resident tensors of one session.");
ABSL_FLAG(uint32_t, max_tensors_per_uid, gemmd::Quotas().tensors_per_uid, "Resident tensors of one user.");
ABSL_FLAG(uint64_t, max_tensor_bytes_per_uid, gemmd::Quotas().tensor_bytes_per_uid,
          "Bytes of the resident tensors of one user.");
ABSL_FLAG(uint32_t, max_jobs_per_session, gemmd::Quotas().jobs_per_session, "Requests of one session in flight.");
ABSL_FLAG(uint32_t, max_jobs_per_uid, gemmd::Quotas().jobs_per_uid,
          "Requests in flight of all sessions of one user; sessions opened on HOST:PORT count as one user.");
ABSL_FLAG(uint32_t, max_anonymous_jobs, gemmd::Quotas().anonymous_jobs,
          "Requests in flight of all clients without a session.");

ABSL_FLAG(
    std::string, allow_uids, "",
    "Numeric ids of the users who may open sessions at the broker and so share memory, separated by commas; empty: "
    "everybody who may open its socket. Calls on the gRPC socket are let in by its mode alone.");
ABSL_FLAG(bool, insecure, false, "Allow HOST:PORT that other machines can reach without TLS.");
ABSL_FLAG(std::string, tls_cert, "", "PEM certificate chain for HOST:PORT listeners; read again when it changes.");
ABSL_FLAG(std::string, tls_key, "", "PEM private key of --tls_cert.");
ABSL_FLAG(std::string, tls_client_ca, "", "PEM authorities; clients must then show a certificate of one of them.");
ABSL_FLAG(std::string, token_file, "",
          "File of bearer tokens, one per line, # for comments, not open to others than owner and group; read again "
          "when it changes. Calls on HOST:PORT other than health checks then need one of them.");
ABSL_FLAG(bool, admin_over_tcp, false,
          "Take WarmUp, Drain, SetLogLevel and GetTrace on HOST:PORT too, not only on the socket.");
ABSL_FLAG(std::string, log_level, "info",
          "trace, debug, info, warning, error, critical or off; of the workers too. gemmctl loglevel changes it.");
ABSL_FLAG(std::string, log_format, "text",
          "Lines on standard error, of the workers too: text, or json (one object each).");
ABSL_FLAG(int, trace_requests, gemmd::ServerOptions().trace_requests,
          "How many of the latest requests are remembered for gemmctl trace and the page /tracez; 0: none.");
ABSL_FLAG(bool, remote_debug_pages, false,
          "Show the debug pages of --metrics_listen to other machines too; without this they get /metrics only.");

namespace gemmd {
namespace {

// A limit per user that was not given grows with that of a session, because a session's right is one of its user.
template <typename T>
T UserLimit(const absl::Flag<T>& flag, T by_default, T of_session) {
  const T given = absl::GetFlag(flag);
  return given == by_default ? std::max(given, of_session) : given;
}

Quotas QuotasFromFlags() {
  const Quotas by_default;
  Quotas quotas;
  quotas.sessions = absl::GetFlag(FLAGS_max_sessions);
  quotas.sessions_per_uid = absl::GetFlag(FLAGS_max_sessions_per_uid);
  quotas.broker_connections = std::max(quotas.broker_connections, quotas.sessions);
  quotas.broker_connections_per_uid = std::max(quotas.broker_connections_per_uid, quotas.sessions_per_uid);
  quotas.regions_per_session = absl::GetFlag(FLAGS_max_regions_per_session);
  quotas.regions_per_uid = UserLimit(FLAGS_max_regions_per_uid, by_default.regions_per_uid, quotas.regions_per_session);
  quotas.region_bytes_per_session = absl::GetFlag(FLAGS_max_region_bytes_per_session);
  quotas.region_bytes_per_uid =
      UserLimit(FLAGS_max_region_bytes_per_uid, by_default.region_bytes_per_uid, quotas.region_bytes_per_session);
  quotas.tensors_per_session = absl::GetFlag(FLAGS_max_tensors_per_session);
  quotas.tensors_per_uid = UserLimit(FLAGS_max_tensors_per_uid, by_default.tensors_per_uid, quotas.tensors_per_session);
  quotas.tensor_bytes_per_session = absl::GetFlag(FLAGS_max_tensor_bytes_per_session);
  quotas.tensor_bytes_per_uid =
      UserLimit(FLAGS_max_tensor_bytes_per_uid, by_default.tensor_bytes_per_uid, quotas.tensor_bytes_per_session);
  quotas.jobs_per_session = absl::GetFlag(FLAGS_max_jobs_per_session);
  quotas.jobs_per_uid = UserLimit(FLAGS_max_jobs_per_uid, by_default.jobs_per_uid, quotas.jobs_per_session);
  quotas.anonymous_jobs = absl::GetFlag(FLAGS_max_anonymous_jobs);
  return quotas;
}

std::string WorkerBinary() {
  std::string binary = absl::GetFlag(FLAGS_worker_binary);
  if (!binary.empty()) return binary;
  std::error_code error;
  return (std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / "gemmd-worker").string();
}

// Empty: none.
std::string KernelCacheDirectory() {
  const std::string flag = absl::GetFlag(FLAGS_kernel_cache_dir);
  if (flag == "none") return "";
  if (!flag.empty()) return flag;
  // systemd sets the first; the others are where users' caches go (XDG Base Directory Specification).
  for (const auto& [variable, suffix] :
       {std::pair("CACHE_DIRECTORY", "/kernels"), std::pair("XDG_CACHE_HOME", "/gemmd/kernels"),
        std::pair("HOME", "/.cache/gemmd/kernels")}) {
    const char* const value = std::getenv(variable);
    if (value != nullptr && value[0] == '/') return absl::StrCat(value, suffix);
  }
  return "";
}

bool IsOurs(absl::string_view file) { return absl::EndsWith(file, "server/main.cc"); }

// Of this program, by name.
std::vector<FlagValue> FlagValues() {
  std::vector<FlagValue> values;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!IsOurs(flag->Filename())) continue;
    const std::string value = flag->CurrentValue();
    values.push_back({std::string(name), value, value == flag->DefaultValue()});
  }
  std::sort(values.begin(), values.end(),
            [](const FlagValue& left, const FlagValue& right) { return left.name < right.name; });
  return values;
}

absl::StatusOr<ServerOptions> OptionsFromFlags() {
  ServerOptions options;
  absl::StatusOr<ListenAddresses> listen = ParseListen(absl::GetFlag(FLAGS_listen));
  if (!listen.ok()) return listen.status();
  options.listen = *std::move(listen);
  absl::StatusOr<std::optional<std::vector<uid_t>>> allow_uids = ParseUids(absl::GetFlag(FLAGS_allow_uids));
  if (!allow_uids.ok()) return allow_uids.status();
  options.allow_uids = *std::move(allow_uids);
  options.worker_binary = WorkerBinary();
  const std::string devices = absl::GetFlag(FLAGS_workers);
  DeviceSupport support;
  if (devices != kCpuDevice) support = FindDevices(options.worker_binary);
  absl::StatusOr<std::vector<std::string>> workers = ParseWorkers(devices, support);
  if (!workers.ok()) return workers.status();
  if (devices == "auto" && support.gpus.empty()) spdlog::info("workers: the CPU, no GPU: {}", support.why_no_gpu);
  options.workers = *std::move(workers);
  options.kernel_cache_dir = KernelCacheDirectory();
  options.worker_hang_timeout = absl::GetFlag(FLAGS_worker_hang_timeout);
  options.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.worker_threads = absl::GetFlag(FLAGS_worker_threads);
  options.spin_us = absl::GetFlag(FLAGS_spin_us);
  options.warmup_manifest = absl::GetFlag(FLAGS_warmup_manifest);
  absl::StatusOr<std::vector<std::string>> tensor_dirs = ParseTensorDirectories(absl::GetFlag(FLAGS_tensor_dirs));
  if (!tensor_dirs.ok()) return tensor_dirs.status();
  options.tensor_dirs = *std::move(tensor_dirs);
  options.tensor_manifest = absl::GetFlag(FLAGS_tensor_manifest);
  options.max_connection_age = absl::GetFlag(FLAGS_max_connection_age);
  options.merging = absl::GetFlag(FLAGS_merging);
  options.tls = {absl::GetFlag(FLAGS_tls_cert), absl::GetFlag(FLAGS_tls_key), absl::GetFlag(FLAGS_tls_client_ca)};
  options.token_file = absl::GetFlag(FLAGS_token_file);
  options.insecure = absl::GetFlag(FLAGS_insecure);
  options.admin_over_tcp = absl::GetFlag(FLAGS_admin_over_tcp);
  options.log_level = absl::GetFlag(FLAGS_log_level);
  options.log_format = absl::GetFlag(FLAGS_log_format);
  options.trace_requests = absl::GetFlag(FLAGS_trace_requests);
  options.remote_debug_pages = absl::GetFlag(FLAGS_remote_debug_pages);
  options.flags = FlagValues();
  options.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  options.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  options.worker_start_timeout = absl::GetFlag(FLAGS_worker_start_timeout);
  options.max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes);
  options.arena_bytes = absl::GetFlag(FLAGS_arena_bytes);
  options.max_concurrent_streams = absl::GetFlag(FLAGS_max_concurrent_streams);
  options.quotas = QuotasFromFlags();
  if (absl::Status status = Validate(options); !status.ok()) return status;
  return options;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "gemmd: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Before the other flags are read, which may log already.
absl::Status StartLogFromFlags() {
  const absl::StatusOr<LogFormat> format = ParseLogFormat(absl::GetFlag(FLAGS_log_format));
  if (!format.ok()) return absl::InvalidArgumentError(absl::StrCat("--", format.status().message()));
  const absl::StatusOr<spdlog::level::level_enum> level = ParseLogLevel(absl::GetFlag(FLAGS_log_level));
  if (!level.ok()) return absl::InvalidArgumentError(absl::StrCat("--", level.status().message()));
  StartLog("gemmd", *format, *level);
  return absl::OkStatus();
}

int Run() {
  if (const absl::Status status = StartLogFromFlags(); !status.ok()) return Fail(status);
  absl::StatusOr<ServerOptions> options = OptionsFromFlags();
  if (!options.ok()) return Fail(options.status());

  absl::Mutex mutex;
  bool drain = false;
  const auto start_drain = [&mutex, &drain] {
    absl::MutexLock lock(&mutex);
    drain = true;
  };
  const SignalWatcher signals(start_drain);
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(*std::move(options), start_drain);
  if (!daemon.ok()) return Fail(daemon.status());
  std::printf("%s\n", (*daemon)->ReadyLine().c_str());
  std::fflush(stdout);
  {
    absl::MutexLock lock(&mutex);
    mutex.Await(absl::Condition(&drain));
  }
  if (!(*daemon)->Drain()) spdlog::warn("drain: timed out; what is left is cancelled");
  daemon->reset();
  spdlog::info("drain: done");
  return 0;
}

}  // namespace
}  // namespace gemmd

// Every region costs one descriptor here, and distributions start processes with 1024.
static void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char** argv) {
  gemmd::DropLockOrderChecks();
  absl::SetProgramUsageMessage("gemmd: FP8 block-scaled matrix products for other processes.");
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return std::string("gemmd " GEMMD_VERSION "\n"); };
  // --help lists the flags of this program and no library's.
  usage.contains_help_flags = gemmd::IsOurs;
  absl::SetFlagsUsageConfig(usage);
  if (absl::ParseCommandLine(argc, argv).size() > 1) {
    std::fprintf(stderr, "gemmd: expected flags only; see --help\n");
    return 1;
  }
  // Nothing that is made here is for other users of the machine, sockets least of all.
  umask(0007);
  RaiseDescriptorLimit();
  signal(SIGPIPE, SIG_IGN);
  return gemmd::Run();
}
