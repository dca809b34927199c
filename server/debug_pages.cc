// SPDX-License-Identifier: Apache-2.0
#include "server/debug_pages.h"

#include "proto/element_type.h"
#include "server/html.h"
#include "server/trace_page.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>

namespace gemmd {
namespace {

using Rows = std::vector<std::vector<std::string>>;

constexpr char kHtmlType[] = "text/html; charset=utf-8";
// Of each table of memory: a page stays below a megabyte.
constexpr size_t kMemoryRows = 2000;

constexpr char kStatusPath[] = "/statusz", kQueuePath[] = "/queuez", kRegionPath[] = "/regionz",
               kKernelPath[] = "/kernelz", kTracePath[] = "/tracez", kConfigPath[] = "/configz";

absl::string_view Name(WorkerState state) {
  switch (state) {
    case WorkerState::kStarting:
      return "starting";
    case WorkerState::kReady:
      return "ready";
    case WorkerState::kDead:
      return "dead";
    case WorkerState::kQuarantined:
      return "quarantined";
  }
  return "invalid";
}

std::string BytesText(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

// What the pages know; one object for all, which lives as long as any of them.
class Pages {
 public:
  explicit Pages(DebugSources sources) : sources_(std::move(sources)), started_(absl::Now()) {}

  std::string Index() const;
  std::string Status() const;
  std::string Queue() const;
  std::string Regions() const;
  std::string Kernels() const;
  std::string Traces() const;
  std::string Config() const;

 private:
  static HtmlPage Begin(absl::string_view title) {
    static const std::vector<std::string>* const paths = new std::vector<std::string>{
        "/", kStatusPath, kQueuePath, kRegionPath, kKernelPath, kTracePath, kConfigPath, "/metrics"};
    return HtmlPage(title, *paths);
  }
  void AddWorkers(HtmlPage& page) const;
  void AddLimits(HtmlPage& page) const;

  const DebugSources sources_;
  const absl::Time started_;
};

std::string Pages::Index() const {
  HtmlPage page = Begin("pages");
  page.Link(kStatusPath, "what runs: version, health, workers, sessions, limits");
  page.Link(kQueuePath, "what each worker has to do");
  page.Link(kRegionPath, "memory that clients share, and resident tensors");
  page.Link(kKernelPath, "kernels that workers hold");
  page.Link(kTracePath, "the latest and the slowest requests");
  page.Link(kConfigPath, "flags");
  page.Link("/metrics", "metrics for Prometheus");
  return page.Take();
}

std::string Pages::Status() const {
  HtmlPage page = Begin("statusz");
  const SessionCounts sessions = sources_.state.sessions.Counts();
  const RegionCounts regions = sources_.state.regions.Counts();
  const TensorCounts tensors = sources_.state.tensors.Counts();
  const std::vector<WorkerSnapshot> workers = sources_.state.pool.Snapshot();
  const bool draining = sources_.health.draining();
  const bool serving = ServingNames(workers, draining)[""];
  page.Table({"what", "value"},
             {{"version", sources_.version},
              {"started", absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", started_, absl::UTCTimeZone())},
              {"up for", DurationText(static_cast<uint64_t>(absl::ToInt64Nanoseconds(absl::Now() - started_)))},
              {"health", absl::StrCat(serving ? "SERVING" : "NOT_SERVING", draining ? " (draining)" : "")},
              {"sessions", absl::StrCat(sessions.open_local, " local, ", sessions.open_remote, " remote")},
              {"regions", absl::StrCat(regions.regions(), ", ", BytesText(regions.bytes()))},
              {"resident tensors", absl::StrCat(tensors.private_tensors, " private, ", tensors.shared_tensors,
                                                " shared, ", BytesText(tensors.bytes))},
              {"staging arena", absl::StrCat(BytesText(sources_.state.arena.bytes_in_use()), " of ",
                                             BytesText(sources_.state.arena.byte_size()))}});
  page.Heading("Workers");
  AddWorkers(page);
  page.Heading("Limits");
  AddLimits(page);
  return page.Take();
}

void Pages::AddWorkers(HtmlPage& page) const {
  Rows rows;
  for (const WorkerSnapshot& worker : sources_.state.pool.Snapshot()) {
    rows.push_back({absl::StrCat(rows.size()), worker.traits.device, worker.traits.name,
                    std::string(Name(worker.state)), absl::StrCat(worker.pid), absl::StrCat(worker.restarts),
                    absl::StrCat(worker.traits.cores), BytesText(worker.traits.memory_bytes)});
  }
  page.Table({"worker", "device", "name", "state", "process", "restarts", "cores", "memory"}, rows);
}

void Pages::AddLimits(HtmlPage& page) const {
  const ServerOptions& options = sources_.options;
  const Quotas& quotas = options.quotas;
  page.Table(
      {"limit", "value"},
      {{"message", BytesText(static_cast<uint64_t>(options.max_message_bytes))},
       {"calls of one connection", absl::StrCat(options.max_concurrent_streams)},
       {"sessions; of one user", absl::StrCat(quotas.sessions, "; ", quotas.sessions_per_uid)},
       {"jobs of one session; of one user; without session",
        absl::StrCat(quotas.jobs_per_session, "; ", quotas.jobs_per_uid, "; ", quotas.anonymous_jobs)},
       {"regions of one session; of one user", absl::StrCat(quotas.regions_per_session, "; ", quotas.regions_per_uid)},
       {"bytes of these",
        absl::StrCat(BytesText(quotas.region_bytes_per_session), "; ", BytesText(quotas.region_bytes_per_uid))},
       {"tensors of one session; of one user", absl::StrCat(quotas.tensors_per_session, "; ", quotas.tensors_per_uid)},
       {"bytes of these",
        absl::StrCat(BytesText(quotas.tensor_bytes_per_session), "; ", BytesText(quotas.tensor_bytes_per_uid))}});
}

std::string Pages::Queue() const {
  HtmlPage page = Begin("queuez");
  page.Paragraph(
      "Jobs that were given to workers and have no completion yet, and how many of them wait for the device.");
  Rows rows;
  for (const WorkerSnapshot& worker : sources_.state.pool.Snapshot()) {
    rows.push_back({absl::StrCat(rows.size()), worker.traits.device, std::string(Name(worker.state)),
                    absl::StrCat(worker.jobs_in_flight),
                    worker.oldest_job_ns == 0 ? "-" : DurationText(worker.oldest_job_ns),
                    absl::StrCat(worker.gauges.queued_jobs), DurationText(worker.gauges.queued_ns)});
  }
  page.Table({"worker", "device", "state", "jobs", "oldest", "waiting", "predicted time of these"}, rows);
  return page.Take();
}

std::string Pages::Regions() const {
  HtmlPage page = Begin("regionz");
  const RegionCounts regions = sources_.state.regions.Counts();
  const TensorCounts tensors = sources_.state.tensors.Counts();
  page.Paragraph(absl::StrCat(regions.regions(), " regions and ", tensors.private_tensors + tensors.shared_tensors,
                              " resident tensors; at most ", kMemoryRows, " of each are listed."));
  std::map<uint64_t, Rows> by_session;
  for (const RegionSnapshot& region : sources_.state.regions.Snapshot(kMemoryRows)) {
    by_session[region.session].push_back({absl::StrCat(region.view.region_id),
                                          absl::StrCat(Name(region.view.kind), region.view.device.empty() ? "" : " on ",
                                                       region.view.device, region.view.writable ? "" : ", read only"),
                                          BytesText(region.view.byte_size), std::string(region.state), "",
                                          DurationText(region.age_ns)});
  }
  for (const TensorSnapshot& tensor : sources_.state.tensors.Snapshot(kMemoryRows)) {
    by_session[tensor.session].push_back(
        {absl::StrCat(tensor.id), absl::StrCat(tensor.shared ? "shared" : "private", " tensor, ", Name(tensor.dtype)),
         BytesText(tensor.byte_size),
         tensor.worker == kAnyWorker ? "being allocated" : absl::StrCat("on worker ", tensor.worker),
         absl::StrCat(tensor.pins), DurationText(tensor.age_ns)});
  }
  for (const auto& [session, rows] : by_session) {
    page.Heading(session == 0 ? "gemmd itself" : absl::StrCat("Session ", session));
    page.Table({"id", "kind", "size", "state", "pins", "age"}, rows);
  }
  return page.Take();
}

std::string Pages::Kernels() const {
  HtmlPage page = Begin("kernelz");
  const std::string& directory = sources_.options.kernel_cache_dir;
  page.Paragraph(absl::StrCat("Compiled kernels are kept in ", directory.empty() ? "memory only" : directory,
                              ". Counts are since the start of gemmd; a CPU worker compiles none."));
  Rows rows;
  for (const WorkerSnapshot& worker : sources_.state.pool.Snapshot()) {
    const WorkerCounts& counts = worker.counts;
    const WorkerGauges& gauges = worker.gauges;
    rows.push_back({absl::StrCat(rows.size()), worker.traits.device, absl::StrCat(gauges.kernels),
                    BytesText(gauges.kernel_bytes), absl::StrCat(counts.kernel_hits),
                    absl::StrCat(counts.kernel_misses), absl::StrCat(counts.kernel_loads),
                    absl::StrCat(counts.compiles_ok), absl::StrCat(counts.compiles_failed),
                    absl::StrCat(gauges.compiles_waiting), absl::StrCat(counts.kernel_evictions)});
  }
  page.Table({"worker", "device", "kernels", "size", "hits", "misses", "loaded", "compiled", "failed", "waiting",
              "evicted from disk"},
             rows);
  return page.Take();
}

std::string Pages::Traces() const {
  HtmlPage page = Begin("tracez");
  AddTraces(sources_.requests, page);
  return page.Take();
}

std::string Pages::Config() const {
  HtmlPage page = Begin("configz");
  page.Paragraph("Flags of this process. Keys and tokens are in files; flags name their paths.");
  Rows rows;
  for (const FlagValue& flag : sources_.options.flags) {
    rows.push_back({absl::StrCat("--", flag.name), flag.value, flag.is_default ? "default" : "given"});
  }
  page.Table({"flag", "value", ""}, rows);
  return page.Take();
}

}  // namespace

std::string DurationText(uint64_t ns) {
  const auto value = static_cast<double>(ns);
  if (ns < 1'000'000) return absl::StrFormat("%.1f us", value / 1e3);
  if (ns < 1'000'000'000) return absl::StrFormat("%.2f ms", value / 1e6);
  if (ns < 120'000'000'000) return absl::StrFormat("%.2f s", value / 1e9);
  if (ns < 7'200'000'000'000) return absl::StrFormat("%.0f min", value / 60e9);
  return absl::StrFormat("%.1f h", value / 3600e9);
}

std::vector<HttpPage> DebugPages(const DebugSources& sources) {
  const auto pages = std::make_shared<const Pages>(sources);
  const bool local_only = !sources.options.remote_debug_pages;
  const auto page = [&](const char* path, std::string (Pages::*body)() const) {
    return HttpPage{path, kHtmlType, local_only, [pages, body] { return (*pages.*body)(); }};
  };
  return {page("/", &Pages::Index),           page(kStatusPath, &Pages::Status),  page(kQueuePath, &Pages::Queue),
          page(kRegionPath, &Pages::Regions), page(kKernelPath, &Pages::Kernels), page(kTracePath, &Pages::Traces),
          page(kConfigPath, &Pages::Config)};
}

}  // namespace gemmd
