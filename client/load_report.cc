// SPDX-License-Identifier: Apache-2.0
#include "client/load_report.h"

#include "client/text_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"

#include <cmath>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;

struct Row {
  const char* name;
  const LatencyHistogram* histogram;
};

std::vector<Row> Rows(const LoadReport& report) {
  return {{"latency", &report.latency}, {"service", &report.service}, {"late", &report.late},
          {"decode", &report.decode},   {"queue", &report.queue},     {"device", &report.device},
          {"reply", &report.reply}};
}

double Seconds(uint64_t nanos) { return static_cast<double>(nanos) / 1e9; }

Json ToJson(const LatencyHistogram& histogram) {
  return {{"count", histogram.count()},
          {"mean", histogram.mean() / 1e9},
          {"p50", Seconds(histogram.Quantile(0.5))},
          {"p90", Seconds(histogram.Quantile(0.9))},
          {"p99", Seconds(histogram.Quantile(0.99))},
          {"p99.9", Seconds(histogram.Quantile(0.999))},
          {"max", Seconds(histogram.max())}};
}

double PerSecond(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

double MeanBatch(const LoadReport& report) {
  return report.succeeded == 0 ? 0 : report.batch_jobs / static_cast<double>(report.succeeded);
}

// Negative for a name that is none.
double ValueOf(const LatencyHistogram& histogram, absl::string_view name) {
  if (name == "p50") return static_cast<double>(histogram.Quantile(0.5));
  if (name == "p90") return static_cast<double>(histogram.Quantile(0.9));
  if (name == "p99") return static_cast<double>(histogram.Quantile(0.99));
  if (name == "p99.9") return static_cast<double>(histogram.Quantile(0.999));
  if (name == "max") return static_cast<double>(histogram.max());
  if (name == "mean") return histogram.mean();
  return -1;
}

}  // namespace

Json ToJson(const LoadReport& report) {
  Json json = {{"succeeded", report.succeeded},
               {"errors", report.errors},
               {"mps", report.mps},
               {"seconds", report.seconds},
               {"requests_per_second", PerSecond(static_cast<double>(report.succeeded), report.seconds)},
               {"flops_per_second", PerSecond(report.flops, report.seconds)},
               {"rows_per_second", PerSecond(report.rows, report.seconds)},
               {"mean_batch_jobs", MeanBatch(report)},
               {"checked", report.checked},
               {"check_failures", report.check_failures}};
  for (const Row& row : Rows(report)) json[absl::StrCat(row.name, "_seconds")] = ToJson(*row.histogram);
  return json;
}

std::string ToText(const LoadReport& report) {
  TextTable table({"", "p50", "p90", "p99", "p99.9", "max", "mean"});
  for (const Row& row : Rows(report)) {
    std::vector<std::string> cells = {row.name};
    for (const char* name : {"p50", "p90", "p99", "p99.9", "max", "mean"}) {
      cells.push_back(NanosText(ValueOf(*row.histogram, name)));
    }
    table.Add(std::move(cells));
  }
  std::string text = absl::StrFormat(
      "%d requests in %.2f s: %.1f/s, %s, %.0f rows/s, %.2f jobs per batch\n", report.succeeded, report.seconds,
      PerSecond(static_cast<double>(report.succeeded), report.seconds),
      FlopsText(PerSecond(report.flops, report.seconds)), PerSecond(report.rows, report.seconds), MeanBatch(report));
  for (const auto& [code, count] : report.errors) absl::StrAppend(&text, "errors: ", count, " ", code, "\n");
  for (const auto& [gpu, mps] : report.mps) absl::StrAppend(&text, gpu, ": CUDA MPS ", mps ? "on" : "off", "\n");
  if (report.checked > 0)
    absl::StrAppend(&text, report.checked, " results checked, ", report.check_failures, " wrong\n");
  return absl::StrCat(text, "\n", table.ToString());
}

std::string ToCsv(const LoadReport& report) {
  std::string names = "succeeded,errors,seconds,requests_per_second,flops_per_second,rows_per_second,mean_batch_jobs";
  int64_t errors = 0;
  for (const auto& [code, count] : report.errors) errors += count;
  std::string values = absl::StrCat(report.succeeded, ",", errors, ",", report.seconds, ",",
                                    PerSecond(static_cast<double>(report.succeeded), report.seconds), ",",
                                    PerSecond(report.flops, report.seconds), ",",
                                    PerSecond(report.rows, report.seconds), ",", MeanBatch(report));
  for (const Row& row : Rows(report)) {
    for (const char* name : {"p50", "p90", "p99", "p99.9", "max", "mean"}) {
      absl::StrAppend(&names, ",", row.name, "_", name, "_seconds");
      absl::StrAppend(&values, ",", ValueOf(*row.histogram, name) / 1e9);
    }
  }
  return absl::StrCat(names, "\n", values, "\n");
}

absl::Status CheckObjective(const LoadReport& report, absl::string_view objective) {
  for (const absl::string_view part : absl::StrSplit(objective, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> words = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const double value = ValueOf(report.latency, words.first);
    absl::Duration limit;
    if (value < 0 || !absl::ParseDuration(words.second, &limit)) {
      return absl::InvalidArgumentError(
          absl::StrCat("slo: expected p50, p90, p99, p99.9, max or mean, '=' and a duration, got \"", part, "\""));
    }
    if (report.latency.count() == 0) return absl::FailedPreconditionError("slo: nothing succeeded");
    if (value > static_cast<double>(absl::ToInt64Nanoseconds(limit))) {
      return absl::FailedPreconditionError(absl::StrCat("slo: expected ", words.first, " of at most ",
                                                        absl::FormatDuration(limit), ", got ", NanosText(value)));
    }
  }
  return absl::OkStatus();
}

}  // namespace gemmd
