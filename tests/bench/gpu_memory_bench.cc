// SPDX-License-Identifier: Apache-2.0
// What operands in GPU memory cost, and what is left of them. Three measurements on a gemmd with a GPU worker:
//
//   latency   what a product in each kind of memory takes beside its kernel: gpu_latency.h. Exits with 1 if a result is
//             wrong;
//   register  registering and unregistering 2 MiB of each kind, thousands of times, and what gemmd, its workers and
//             this process hold before and after;
//   death     how soon memory on the device is back when the client that brought it, or had gemmd allocate it, is
//             killed; goal 1 s, to 2 MiB.
//
// Prints one JSON document; progress goes to standard error. Usage: gemmd-gpu-memory-bench [--workers=gpu:0]
// [--only=latency,register,death]. Without a GPU, on the fake driver and worker: see tests/README.md.
#include "client/client.h"
#include "gemmd/v1/admin.pb.h"
#include "proto/broker.h"
#include "proto/lock_checks.h"
#include "tests/bench/device_memory_meter.h"
#include "tests/bench/gpu_latency.h"
#include "tests/bench/measure.h"
#include "tests/e2e/process.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

ABSL_FLAG(std::string, workers, "gpu:0", "As gemmd's; the first must be a GPU.");
ABSL_FLAG(std::vector<std::string>, daemon_flags, {}, "More flags of gemmd, for example --worker_binary=PATH.");
ABSL_FLAG(std::vector<std::string>, only, std::vector<std::string>({"latency", "register", "death"}),
          "Which measurements to make.");
ABSL_FLAG(int, registrations, 10000, "register: of each kind of memory.");
ABSL_FLAG(int, deaths, 8, "death: of each kind of memory.");
ABSL_FLAG(int, death_mib, 512, "death: memory of the client that dies.");

namespace gemmd {
namespace {

constexpr int kWarmUpRegistrations = 200;
constexpr uint64_t kRegionBytes = uint64_t{2} << 20;
constexpr absl::Duration kGivenBack = absl::Seconds(1);
constexpr int64_t kMemorySlack = int64_t{2} << 20;

// What is measured, and how much of its GPU's memory is in use.
struct Subject {
  testing::Daemon& daemon;
  Client& client;
  const v1::WorkerInfo& worker;
  const DeviceMemoryMeter& meter;

  int64_t UsedBytes() const { return ValueOrDie(meter.UsedBytes(), "memory in use"); }
};

void Say(const std::string& what) { std::fprintf(stderr, "gpu_memory_bench: %s\n", what.c_str()); }

Json ProcessUsage(pid_t pid) {
  return Json{{"descriptors", testing::OpenDescriptors(pid)},
              {"shared_mappings", testing::SharedMappings(pid)},
              {"anonymous_bytes", testing::AnonymousBytes(pid)}};
}

// A number of the metrics page; null if it is not there.
Json Metric(const Subject& subject, const std::string& series) {
  const auto value = subject.daemon.Metric(series);
  return value.ok() ? Json(*value) : Json();
}

Json UsageNow(const Subject& subject, const std::string& kind) {
  const std::string regions = absl::StrCat("gemmd_regions{kind=\"", kind, "\"}");
  testing::WaitUntil(absl::Seconds(5), [&] { return subject.daemon.Metric(regions).value_or(0) == 0; });
  // What is freed behind an answer, and the daemon's own sample of the GPU.
  absl::SleepFor(absl::Milliseconds(1200));
  Json workers = Json::array();
  for (const pid_t pid : subject.daemon.WorkerPids()) workers.push_back(ProcessUsage(pid));
  return Json{{"gemmd", ProcessUsage(subject.daemon.process().pid())},
              {"workers", std::move(workers)},
              {"client", ProcessUsage(getpid())},
              {"regions", Metric(subject, regions)},
              {"gpu_used_bytes", subject.UsedBytes()},
              {"gpu_used_bytes_metric",
               Metric(subject, absl::StrCat("gemmd_gpu_memory_used_bytes{device=\"", subject.worker.device(), "\"}"))}};
}

// Registers 2 MiB and unregisters them; `once` is called from one thread.
struct Registration {
  std::string kind;
  std::function<void()> once;
};

Json MeasureRegistration(const Subject& subject, const Registration& registration) {
  for (int i = 0; i < kWarmUpRegistrations; ++i) registration.once();
  Json before = UsageNow(subject, registration.kind);
  std::vector<double> microseconds(static_cast<size_t>(absl::GetFlag(FLAGS_registrations)));
  for (double& us : microseconds) us = MicrosecondsOf(registration.once);
  Json after = UsageNow(subject, registration.kind);
  return Json{{"kind", registration.kind},
              {"registrations", microseconds.size()},
              {"p50_us", Quantile(microseconds, 0.5)},
              {"p99_us", Quantile(microseconds, 0.99)},
              {"before", std::move(before)},
              {"after", std::move(after)}};
}

Json MeasureRegistrations(const Subject& subject) {
  Client& client = subject.client;
  const std::shared_ptr<Gpu> gpu = ValueOrDie(Gpu::Open(subject.worker.device()), "GPU");
  const auto session =
      ValueOrDie(ClientSession::OpenAtBroker(subject.daemon.socket_path() + kBrokerSuffix, {}), "session");
  const GpuAllocation memory = ValueOrDie(gpu->Allocate(kRegionBytes), "memory");
  const UniqueFd descriptor = ValueOrDie(memory.Export(), "descriptor");
  const GpuAllocation legacy = ValueOrDie(gpu->AllocateLegacy(kRegionBytes), "memory of cudaMalloc");
  const std::string name = absl::StrCat("/gemmd-bench-", getpid());
  const std::vector<Registration> registrations = {
      {"host", [&] { ValueOrDie(client.CreateHostRegion(kRegionBytes), "host"); }},
      {"shared_memory", [&] { ValueOrDie(client.CreateSharedMemory(name, kRegionBytes), "shared memory"); }},
      {"pool", [&] { ValueOrDie(client.CreatePool(kRegionBytes, gpu->uuid()), "pool"); }},
      // The library allocates for each region; here it is one allocation and one descriptor.
      {"device",
       [&] {
         const auto id = session->RegisterDevice(descriptor.get(), kRegionBytes, Access::kReadWrite, gpu->uuid());
         OkOrDie(session->CloseRegion(ValueOrDie(id, "device")), "device");
       }},
      {"device_ipc", [&] { ValueOrDie(client.ShareDeviceMemory(gpu, legacy.data(), kRegionBytes), "device_ipc"); }},
  };
  Json reports = Json::array();
  for (const Registration& registration : registrations) {
    Say(absl::StrCat("register ", registration.kind));
    reports.push_back(MeasureRegistration(subject, registration));
  }
  return Json{{"region_bytes", kRegionBytes}, {"results", std::move(reports)}};
}

struct Death {
  int64_t taken_bytes = 0;   // More in use while the client lived.
  double given_back_ms = 0;  // From the kill; beyond 10 s it is no longer waited for.
  int64_t left_bytes = 0;    // One second after the kill.
};

Death LetOneDie(const Subject& subject, const std::string& stage) {
  const int64_t before = subject.UsedBytes();
  const auto doomed = ValueOrDie(
      testing::ChildProcess::Start({testing::BinaryDirectory() + "/gemmd-doomed-client", subject.daemon.address(),
                                    stage, absl::StrCat(absl::GetFlag(FLAGS_death_mib))}),
      "doomed client");
  ValueOrDie(doomed->ReadLine(absl::Seconds(60)), "doomed client");
  Death death;
  death.taken_bytes = subject.UsedBytes() - before;
  const absl::Time killed = absl::Now();
  doomed->Signal(SIGKILL);
  const auto given_back = [&] { return subject.UsedBytes() <= before + kMemorySlack; };
  const bool in_time = testing::WaitUntil(kGivenBack, given_back);
  absl::Duration took = absl::Now() - killed;
  absl::SleepFor(killed + kGivenBack - absl::Now());
  death.left_bytes = subject.UsedBytes() - before;
  if (!in_time) {
    testing::WaitUntil(absl::Seconds(9), given_back);
    took = absl::Now() - killed;
  }
  death.given_back_ms = absl::ToDoubleMilliseconds(took);
  ValueOrDie(doomed->WaitForExit(absl::Seconds(10)), "doomed client");
  return death;
}

Json MeasureDeaths(const Subject& subject, const std::string& stage) {
  Say(absl::StrCat("death ", stage));
  // The first one leaves the kernel of its product with the worker.
  LetOneDie(subject, stage);
  const int64_t before = subject.UsedBytes();
  std::vector<double> milliseconds;
  std::vector<int64_t> taken;
  std::vector<int64_t> left;
  for (int i = 0; i < absl::GetFlag(FLAGS_deaths); ++i) {
    const Death death = LetOneDie(subject, stage);
    milliseconds.push_back(death.given_back_ms);
    taken.push_back(death.taken_bytes);
    left.push_back(death.left_bytes);
  }
  return Json{{"stage", stage},
              {"taken_bytes", taken},
              {"given_back_ms", milliseconds},
              {"given_back_max_ms", *std::max_element(milliseconds.begin(), milliseconds.end())},
              {"left_after_1s_bytes", left},
              {"left_after_1s_max_bytes", *std::max_element(left.begin(), left.end())},
              {"left_after_all_bytes", subject.UsedBytes() - before}};
}

Json MeasureAll(testing::Daemon& daemon) {
  const auto client = ValueOrDie(Client::Connect(daemon.address()), "connect");
  const v1::ServerInfo info = ValueOrDie(client->GetInfo(), "GetInfo");
  const v1::WorkerInfo& worker = info.workers(0);
  if (!absl::StartsWith(worker.device(), "GPU-")) {
    OkOrDie(absl::FailedPreconditionError(absl::StrCat("expected a GPU, got ", worker.device())), "workers");
  }
  const auto meter = ValueOrDie(DeviceMemoryMeter::Open(worker.device()), "memory meter");
  const Subject subject{daemon, *client, worker, *meter};
  Json document{{"benchmark", "gpu_memory"},
                {"gpu", worker.name()},
                {"mps", worker.mps()},
                {"cores", std::thread::hardware_concurrency()}};
  const std::vector<std::string> only = absl::GetFlag(FLAGS_only);
  const auto wanted = [&](const char* name) { return std::find(only.begin(), only.end(), name) != only.end(); };
  if (wanted("latency")) document["latency"] = MeasureGpuLatency(daemon.address());
  if (wanted("register")) document["register"] = MeasureRegistrations(subject);
  if (wanted("death")) {
    document["death"] =
        Json{{"memory_mib", absl::GetFlag(FLAGS_death_mib)}, {"goal_ms", 1000}, {"goal_bytes", kMemorySlack}};
    for (const char* const stage : {"pool", "device", "device_ipc"}) {
      document["death"]["results"].push_back(MeasureDeaths(subject, stage));
    }
  }
  return document;
}

// Right products; the same descriptors, mappings and memory of the GPU after all registrations; memory of the dead back
// in time.
bool AllRight(const Json& document) {
  const auto all = [&](const char* part, const std::function<bool(const Json&)>& right) {
    if (!document.contains(part)) return true;
    const Json& results = document[part]["results"];
    return std::all_of(results.begin(), results.end(), right);
  };
  const auto held = [](const Json& process) { return std::pair(process["descriptors"], process["shared_mappings"]); };
  return all("latency", [](const Json& r) { return r.value("check", "ok") == "ok"; }) &&
         all("register",
             [&](const Json& r) {
               const Json& before = r["before"];
               const Json& after = r["after"];
               return held(before["gemmd"]) == held(after["gemmd"]) &&
                      held(before["client"]) == held(after["client"]) &&
                      held(before["workers"][0]) == held(after["workers"][0]) &&
                      after["regions"] == before["regions"] &&
                      after["gpu_used_bytes"].get<int64_t>() <= before["gpu_used_bytes"].get<int64_t>() + kMemorySlack;
             }) &&
         all("death", [](const Json& r) { return r["left_after_1s_max_bytes"].get<int64_t>() <= kMemorySlack; });
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  gemmd::DropLockOrderChecks();
  absl::ParseCommandLine(argc, argv);
  std::vector<std::string> flags = {"--workers=" + absl::GetFlag(FLAGS_workers)};
  for (const std::string& flag : absl::GetFlag(FLAGS_daemon_flags)) flags.push_back(flag);
  const auto daemon = gemmd::ValueOrDie(gemmd::testing::Daemon::Start({.flags = flags}), "gemmd");
  const auto document = gemmd::MeasureAll(*daemon);
  std::printf("%s\n", document.dump(2).c_str());
  return gemmd::AllRight(document) ? 0 : 1;  // What is wrong is no measurement.
}
