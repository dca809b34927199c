// SPDX-License-Identifier: Apache-2.0
#include "server/daemon.h"

#include "proto/broker.h"
#include "proto/warm_up_manifest.h"
#include "server/cpu_placement.h"
#include "server/debug_pages.h"
#include "server/gpu_telemetry.h"
#include "server/state_collector.h"
#include "server/tensor_creation.h"
#include "server/tensor_manifest.h"
#include "server/tls.h"
#include "server/warm_up.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/spdlog.h"

#include <chrono>
#include <utility>

namespace gemmd {
namespace {

constexpr char kVersion[] = GEMMD_VERSION;
// What a response carries beside an inline result, so that both fit into one message.
constexpr int64_t kResponseOverhead = 4 << 10;
// Between the last answer and the end of connections: for calls that are not work, such as a health watch.
constexpr auto kShutdownGrace = std::chrono::milliseconds(200);

std::string BrokerPath(const ServerOptions& options) { return options.listen.unix_path + kBrokerSuffix; }

absl::StatusOr<std::vector<PrepareShape>> ReadWarmUp(const std::string& path) {
  if (path.empty()) return std::vector<PrepareShape>();
  const absl::StatusOr<v1::WarmUpRequest> manifest = ReadWarmUpManifest(path);
  if (!manifest.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--warmup_manifest: ", manifest.status().message()));
  }
  absl::StatusOr<std::vector<PrepareShape>> shapes = ToPrepareShapes(*manifest);
  if (!shapes.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--warmup_manifest: ", path, ": ", shapes.status().message()));
  }
  return shapes;
}

ProcessWorkerPoolOptions PoolOptions(const ServerOptions& options, std::optional<int> loop_cpu) {
  ProcessWorkerPoolOptions pool;
  pool.devices = options.workers;
  pool.supervisor.worker_binary = options.worker_binary;
  pool.supervisor.start_timeout_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.worker_start_timeout));
  pool.link.hang_timeout_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(options.worker_hang_timeout));
  pool.spin_us = options.spin_us;
  for (const std::string& device : options.workers) {
    pool.supervisor.workers.push_back(
        {absl::StrCat("--device=", device), absl::StrCat("--threads=", options.worker_threads),
         absl::StrCat("--kernel_cache_dir=", options.kernel_cache_dir),
         absl::StrCat("--merging=", options.merging ? "true" : "false"),
         absl::StrCat("--log_level=", options.log_level), absl::StrCat("--log_format=", options.log_format)});
    if (options.spin_us >= 0) pool.supervisor.workers.back().push_back(absl::StrCat("--spin_us=", options.spin_us));
    if (loop_cpu) pool.supervisor.workers.back().push_back(absl::StrCat("--loop_cpu=", *loop_cpu));
  }
  return pool;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(ServerOptions options, std::function<void()> start_drain) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(options)));
  if (absl::Status status = CheckTlsFiles(daemon->options_.tls); !status.ok()) return status;
  if (absl::Status status = daemon->OpenTokens(); !status.ok()) return status;
  if (absl::Status status = PrepareSocketPath(daemon->options_.listen.unix_path); !status.ok()) return status;
  if (absl::Status status = daemon->StartWorkers(); !status.ok()) return status;
  if (absl::Status status = daemon->StartServices(std::move(start_drain)); !status.ok()) return status;
  if (absl::Status status = daemon->LoadTensors(); !status.ok()) return status;
  if (absl::Status status = daemon->StartListeners(); !status.ok()) return status;
  return daemon;
}

Daemon::Daemon(ServerOptions options)
    : options_(std::move(options)),
      loop_cpu_(LoopCpu(static_cast<int>(options_.workers.size()), AllowedCpus())),
      metrics_(kVersion),
      requests_(static_cast<size_t>(options_.trace_requests), [this] { metrics_.CountMalformedTraceparent(); }) {}

absl::Status Daemon::OpenTokens() {
  if (options_.token_file.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<TokenFile>> tokens =
      TokenFile::Open(options_.token_file, [this](const absl::Status& status) { metrics_.CountTokenReload(status); });
  if (!tokens.ok()) return tokens.status();
  token_guard_ = std::make_shared<TokenGuard>(*std::move(tokens), [this] { metrics_.CountTokenRefusal(); });
  return absl::OkStatus();
}

absl::Status Daemon::StartWorkers() {
  absl::StatusOr<std::vector<PrepareShape>> warm_up = ReadWarmUp(options_.warmup_manifest);
  if (!warm_up.ok()) return warm_up.status();
  ProcessWorkerPoolOptions options = PoolOptions(options_, loop_cpu_);
  options.warm_up = *std::move(warm_up);
  pool_ = std::make_unique<ProcessWorkerPool>(std::move(options), [this] { health_->Update(); });
  health_ = std::make_unique<Health>(*pool_, metrics_);
  pool_->Start();
  if (absl::Status status = pool_->WaitReady(); !status.ok()) return status;
  absl::Status warm = pool_->WaitWarm();
  if (warm.ok()) return warm;
  return absl::Status(warm.code(), absl::StrCat("--warmup_manifest: ", options_.warmup_manifest, ": ", warm.message()));
}

absl::Status Daemon::StartServices(std::function<void()> start_drain) {
  regions_ = RegionRegistry::Create(options_.quotas, *pool_);
  tensors_ = TensorRegistry::Create(options_.quotas, *pool_);
  sessions_ = std::make_unique<SessionRegistry>(options_.quotas, regions_, tensors_);
  absl::StatusOr<std::unique_ptr<StagingArena>> arena =
      StagingArena::Create(static_cast<uint64_t>(options_.arena_bytes), *pool_);
  if (!arena.ok()) return arena.status();
  arena_ = *std::move(arena);
  absl::StatusOr<TensorFiles> files = TensorFiles::Open(options_.tensor_dirs);
  if (!files.ok()) return files.status();
  tensor_files_ = *std::move(files);
  file_thread_ = std::make_unique<FileThread>();
  authenticator_ = std::make_unique<Authenticator>(*sessions_);
  builder_ = std::make_unique<JobBuilder>(Memory{*regions_, *tensors_, *arena_},
                                          static_cast<uint64_t>(options_.max_message_bytes - kResponseOverhead));
  gemm_service_ = std::make_unique<GemmService>(
      GemmParts{*pool_, *authenticator_, *builder_, gate_, metrics_, requests_}, GemmServiceLimits{});
  tensor_service_ = std::make_unique<TensorService>(TensorService::Parts{
      *tensors_, *regions_, *arena_, *pool_, *authenticator_, gate_, tensor_files_, *file_thread_});
  session_service_ = std::make_unique<SessionService>(*sessions_, *regions_, *authenticator_);
  AdminSettings settings;
  settings.version = kVersion;
  settings.broker_path = BrokerPath(options_);
  settings.max_message_bytes = static_cast<uint64_t>(options_.max_message_bytes);
  settings.merging = options_.merging;
  settings.admin_over_tcp = options_.admin_over_tcp;
  settings.start_drain = std::move(start_drain);
  admin_service_ = std::make_unique<AdminService>(
      AdminParts{*pool_, *regions_, *tensors_, *sessions_, *health_, requests_}, std::move(settings));
  return absl::OkStatus();
}

absl::Status Daemon::LoadTensors() {
  if (options_.tensor_manifest.empty()) return absl::OkStatus();
  const TensorMakers makers{*tensors_, *regions_, *arena_, *pool_, tensor_files_, *file_thread_};
  const absl::StatusOr<TensorTotals> loaded = LoadTensorManifest(options_.tensor_manifest, makers);
  if (!loaded.ok()) {
    return absl::Status(loaded.status().code(),
                        absl::StrCat("--tensor_manifest: ", options_.tensor_manifest, ": ", loaded.status().message()));
  }
  spdlog::info("{} tensors of the manifest, {} bytes", loaded->tensors, loaded->bytes);
  return absl::OkStatus();
}

absl::Status Daemon::StartListeners() {
  if (!options_.metrics_listen.empty()) {
    const StateSources sources{*pool_, *regions_, *tensors_, *sessions_, *arena_};
    const auto gpus = GpuTelemetry::Start(options_.workers, kNvmlLibrary);
    absl::StatusOr<std::unique_ptr<MetricsListener>> listener = MetricsListener::Start(
        options_.metrics_listen, {metrics_.registry(), std::make_shared<StateCollector>(sources), gpus},
        DebugPages({sources, *health_, requests_, options_, kVersion}));
    if (!listener.ok()) return listener.status();
    metrics_listener_ = *std::move(listener);
  }
  absl::StatusOr<std::unique_ptr<Broker>> broker =
      Broker::Start({BrokerPath(options_), options_.allow_uids, options_.quotas}, *sessions_, *regions_);
  if (!broker.ok()) return broker.status();
  broker_ = *std::move(broker);
  grpc::Service* const services[] = {gemm_service_.get(), tensor_service_.get(), session_service_.get(),
                                     admin_service_.get()};
  absl::StatusOr<RunningServer> server = StartServer(options_, services, token_guard_);
  if (!server.ok()) return server.status();
  server_ = *std::move(server);
  const cpu_set_t cpus = AllowedCpus();
  pollers_ = std::make_unique<GrpcPollers>(PollerPolicy{}, loop_cpu_ ? Except(cpus, *loop_cpu_) : cpus);
  health_->Attach(server_.server->GetHealthCheckService());
  return absl::OkStatus();
}

Daemon::~Daemon() {
  if (server_.server == nullptr) return;
  health_->Attach(nullptr);
  session_service_->EndSessions();
  pollers_ = nullptr;
  server_.server->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
}

std::string Daemon::ReadyLine() const {
  return absl::StrCat("gemmd ready: listen=", absl::StrJoin(server_.addresses, ","),
                      " metrics=", metrics_listener_ == nullptr ? "" : metrics_listener_->address(),
                      " workers=", absl::StrJoin(options_.workers, ","));
}

bool Daemon::Drain() {
  spdlog::info("drain: not serving; new work is refused in {}", absl::FormatDuration(options_.drain_delay));
  health_->SetDraining();
  absl::SleepFor(options_.drain_delay);
  gate_.Close();
  spdlog::info("drain: {} requests to finish", gate_.passes());
  return gate_.WaitEmpty(options_.drain_timeout);
}

}  // namespace gemmd
