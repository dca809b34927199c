// SPDX-License-Identifier: Apache-2.0
// gemmload: a load generator for gemmd. Flags and output; the load itself is in load_run.cc.
#include "client/connect_flags.h"
#include "client/load_mix.h"
#include "client/load_plot.h"
#include "client/load_report.h"
#include "client/load_run.h"
#include "client/stored_array.h"
#include "proto/lock_checks.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

ABSL_FLAG(std::string, mode, "closed",
          "closed (the next request follows an answer) or open (requests follow a clock).");
ABSL_FLAG(int64_t, concurrency, 8, "Closed loop: requests in flight.");
ABSL_FLAG(double, rate, 100, "Open loop: requests per second.");
ABSL_FLAG(std::string, arrival, "poisson", "Open loop: constant or poisson.");
ABSL_FLAG(int64_t, max_in_flight, 64,
          "Open loop: most requests in flight; what waits for its turn is late, and counted so.");
ABSL_FLAG(std::string, transport, "host",
          "Of A and D: inline, host, pool (gemmd's memory on its device), device or device_ipc (this process's GPU "
          "memory).");
ABSL_FLAG(
    std::string, weights, "resident",
    "B: resident (made once), request (travels like A), or name:NAME: the shared tensor NAME with the scale factors "
    "NAME.sf, as gemmd's --tensor_manifest makes them; every shape must fit it, and --check cannot be had.");
ABSL_FLAG(
    bool, round_robin, false,
    "Spread requests over all daemons of --server=dns:///NAME:PORT or ipv4:HOST:PORT,HOST:PORT that are healthy, "
    "and send again what one that goes away has refused. Without a session: --transport=inline, and --weights not "
    "resident.");
ABSL_FLAG(std::string, path, "unary", "unary or stream.");
ABSL_FLAG(std::string, shapes, "tiny",
          "tiny, deepseek_decode, deepseek_prefill, moe, or a file of SHARE OP M N K [GROUPS].");
ABSL_FLAG(int64_t, moe_tokens, 32, "--shapes=moe: tokens of one step.");
ABSL_FLAG(int64_t, moe_top_k, 8, "--shapes=moe: experts of each token.");
ABSL_FLAG(int64_t, moe_groups, 32, "--shapes=moe: experts.");
ABSL_FLAG(int64_t, moe_n, 512, "--shapes=moe: N of an expert. DeepSeek-V3: 4096 (gate and up), 7168 (down).");
ABSL_FLAG(int64_t, moe_k, 1024, "--shapes=moe: K of an expert. DeepSeek-V3: 7168 (gate and up), 2048 (down).");
ABSL_FLAG(double, moe_skew, 1.0, "--shapes=moe: exponent of the experts' Zipf popularity; 0: all alike.");
ABSL_FLAG(bool, moe_masked, false, "--shapes=moe: m-grouped masked instead of contiguous.");
ABSL_FLAG(absl::Duration, duration, absl::Seconds(10), "How long to measure.");
ABSL_FLAG(absl::Duration, warmup, absl::Seconds(1), "How long to run before measuring.");
ABSL_FLAG(int64_t, connections, 1, "Connections (and sessions) that share the load.");
ABSL_FLAG(bool, check, false, "Compare the last result of each slot with the FP64 reference.");
ABSL_FLAG(std::string, slo, "", "Latency objective, for example p99=2ms; missed: exit status 1.");
ABSL_FLAG(bool, json, false, "Print one JSON document instead of a table.");
ABSL_FLAG(std::string, csv, "", "Also write the report to this file as CSV.");
ABSL_FLAG(std::string, plot, "", "Also draw latency and throughput into this file, as SVG.");
ABSL_FLAG(uint64_t, seed, 1, "Seed of operands, arrivals and mix.");

namespace {

constexpr char kUsage[] = R"(gemmload: a load generator for gemmd.

  gemmload --shapes=deepseek_decode --mode=closed --concurrency=8
  gemmload --shapes=moe --mode=open --rate=200 --arrival=poisson --path=stream --slo=p99=50ms

Latency in an open loop counts from the moment a request was meant to start, so a slow server cannot hide behind a
generator that waits for it. The exit status is 0 if no request failed, no check failed, and the objective was met.
Flags: gemmload --help)";

absl::StatusOr<bool> OneOf(const char* flag, const std::string& value, const char* no, const char* yes) {
  if (value == yes) return true;
  if (value == no) return false;
  return absl::InvalidArgumentError(absl::StrCat(flag, ": expected ", no, " or ", yes, ", got \"", value, "\""));
}

absl::StatusOr<gemmd::LoadOptions> OptionsFromFlags() {
  gemmd::LoadOptions options;
  const auto open = OneOf("mode", absl::GetFlag(FLAGS_mode), "closed", "open");
  const auto stream = OneOf("path", absl::GetFlag(FLAGS_path), "unary", "stream");
  const std::string weights_flag = absl::GetFlag(FLAGS_weights);
  absl::string_view weights = weights_flag;
  if (absl::ConsumePrefix(&weights, "name:")) options.weights_name = std::string(weights);
  const bool named = !options.weights_name.empty();
  const auto resident = named ? absl::StatusOr<bool>(false) : OneOf("weights", weights_flag, "request", "resident");
  const auto transport = gemmd::ParseTransport(absl::GetFlag(FLAGS_transport));
  const auto arrival = gemmd::ParseArrival(absl::GetFlag(FLAGS_arrival));
  for (const absl::Status& status :
       {open.status(), stream.status(), resident.status(), transport.status(), arrival.status()}) {
    if (!status.ok()) return status;
  }
  if (*transport == gemmd::Transport::kTensor) {
    return absl::InvalidArgumentError("transport: expected one of A and D; --weights=resident makes B a tensor");
  }
  if (absl::GetFlag(FLAGS_round_robin) && (*transport != gemmd::Transport::kInline || *resident)) {
    return absl::InvalidArgumentError("round_robin: expected --transport=inline and --weights=request or name:NAME");
  }
  if (named && absl::GetFlag(FLAGS_check)) {
    return absl::InvalidArgumentError("check: expected --weights=resident or request, whose values are known here");
  }
  const absl::StatusOr<gemmd::ServerToConnect> server = gemmd::ServerFromFlags("gemmload");
  if (!server.ok()) return server.status();
  options.server = server->address;
  options.connect = server->options;
  options.connect.round_robin = absl::GetFlag(FLAGS_round_robin);
  options.connect.open_session = !options.connect.round_robin;
  options.open_loop = *open;
  options.stream = *stream;
  options.resident_weights = *resident;
  options.transport = *transport;
  options.arrival = *arrival;
  options.slots = *open ? absl::GetFlag(FLAGS_max_in_flight) : absl::GetFlag(FLAGS_concurrency);
  options.connections = absl::GetFlag(FLAGS_connections);
  options.rate = absl::GetFlag(FLAGS_rate);
  options.warmup = absl::GetFlag(FLAGS_warmup);
  options.duration = absl::GetFlag(FLAGS_duration);
  options.check = absl::GetFlag(FLAGS_check);
  options.seed = absl::GetFlag(FLAGS_seed);
  if (options.slots < 1 || options.connections < 1 || !(options.rate > 0)) {
    return absl::InvalidArgumentError("expected concurrency, max_in_flight, connections and rate above 0");
  }
  const gemmd::MoeOptions moe{.tokens = absl::GetFlag(FLAGS_moe_tokens),
                              .top_k = absl::GetFlag(FLAGS_moe_top_k),
                              .groups = absl::GetFlag(FLAGS_moe_groups),
                              .skew = absl::GetFlag(FLAGS_moe_skew),
                              .masked = absl::GetFlag(FLAGS_moe_masked),
                              .n = absl::GetFlag(FLAGS_moe_n),
                              .k = absl::GetFlag(FLAGS_moe_k)};
  absl::StatusOr<std::vector<gemmd::MixEntry>> mix = gemmd::LoadMix(absl::GetFlag(FLAGS_shapes), moe, options.seed);
  if (!mix.ok()) return mix.status();
  options.mix = *std::move(mix);
  return options;
}

// What was run, in a line.
std::string Title() {
  const bool open = absl::GetFlag(FLAGS_mode) == "open";
  const std::string loop =
      open ? absl::StrCat("open loop, ", absl::GetFlag(FLAGS_rate), "/s ", absl::GetFlag(FLAGS_arrival))
           : absl::StrCat("closed loop, ", absl::GetFlag(FLAGS_concurrency), " in flight");
  return absl::StrCat("gemmload: ", absl::GetFlag(FLAGS_shapes), ", ", loop, ", ", absl::GetFlag(FLAGS_transport), ", ",
                      absl::GetFlag(FLAGS_path));
}

// To the files that flags name.
absl::Status WriteFiles(const gemmd::LoadReport& report) {
  const std::string csv = absl::GetFlag(FLAGS_csv);
  const std::string plot = absl::GetFlag(FLAGS_plot);
  absl::Status status;
  if (!csv.empty()) status.Update(gemmd::WriteFile(csv, gemmd::ToCsv(report)));
  if (!plot.empty()) status.Update(gemmd::WriteFile(plot, gemmd::ToSvg(report, Title())));
  return status;
}

// Why this run is not a success.
absl::Status Judge(const gemmd::LoadReport& report) {
  if (report.check_failures > 0) return absl::DataLossError(report.first_check_failure);
  for (const auto& [code, count] : report.errors) {
    return absl::UnavailableError(absl::StrCat(count, " requests failed with ", code));
  }
  if (report.succeeded == 0) return absl::UnavailableError("no request was answered in the measured time");
  return gemmd::CheckObjective(report, absl::GetFlag(FLAGS_slo));
}

absl::Status Main() {
  // Syntax first: nobody wants to learn of a typing mistake after the run.
  absl::Status objective = gemmd::CheckObjective({}, absl::GetFlag(FLAGS_slo));
  if (absl::IsInvalidArgument(objective)) return objective;
  const absl::StatusOr<gemmd::LoadOptions> options = OptionsFromFlags();
  if (!options.ok()) return options.status();
  const absl::StatusOr<gemmd::LoadReport> report = gemmd::RunLoad(*options);
  if (!report.ok()) return report.status();
  const std::string text = absl::GetFlag(FLAGS_json) ? gemmd::ToJson(*report).dump(2) + "\n" : gemmd::ToText(*report);
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (absl::Status written = WriteFiles(*report); !written.ok()) return written;
  return Judge(*report);
}

}  // namespace

int main(int argc, char** argv) {
  gemmd::DropLockOrderChecks();
  gemmd::DescribeProgram(kUsage, __FILE__);
  if (absl::ParseCommandLine(argc, argv).size() != 1) {
    std::fprintf(stderr, "gemmload: expected flags only\n\n%s\n", kUsage);
    return 2;
  }
  const absl::Status status = Main();
  if (status.ok()) return 0;
  std::fprintf(stderr, "gemmload: %s\n", status.ToString().c_str());
  return 1;
}
