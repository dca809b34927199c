// SPDX-License-Identifier: Apache-2.0
#include "client/load_plot.h"

#include "client/text_table.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr int kWidth = 960;
constexpr int kHeight = 420;
constexpr int kCurveSteps = 160;
constexpr size_t kMaxBars = 60;

// Colours with enough contrast on both papers; a viewer that knows no scheme shows the light one.
constexpr char kHead[] =
    R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">
<style>
  text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; }
  .muted { fill: #59636e; }
  .paper { fill: #ffffff; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .latency, .service, .mean { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .latency { stroke: #0969da; }
  .service { stroke: #bc4c00; stroke-dasharray: 6 4; }
  .mean { stroke: #59636e; stroke-width: 1; stroke-dasharray: 3 3; }
  .bar { fill: #0969da; fill-opacity: 0.55; }
  .dot { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .muted { fill: #9198a1; }
    .paper { fill: #0d1117; }
    .grid { stroke: #3d444d; }
    .latency { stroke: #4493f8; }
    .service { stroke: #db6d28; }
    .mean { stroke: #9198a1; }
    .bar, .dot { fill: #4493f8; }
  }
</style>
<rect class="paper" width="100%%" height="100%%"/>
)";

// Where a chart lies, and the values at its borders. x and y are what is drawn: logarithms where an axis is
// logarithmic.
struct Frame {
  double left, top, width, height;
  double x_end = 1;
  double y_begin = 0, y_end = 1;

  double X(double x) const { return left + width * x / x_end; }
  double Y(double y) const { return top + height * (1 - (y - y_begin) / (y_end - y_begin)); }
  double bottom() const { return top + height; }
  double right() const { return left + width; }
};

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

// `style`: further attributes.
std::string Text(double x, double y, absl::string_view text, absl::string_view style = "") {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, style, Escape(text));
}

std::string Line(absl::string_view style, double x1, double y1, double x2, double y2) {
  return absl::StrFormat("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", style, x1, y1, x2,
                         y2);
}

std::string TickX(const Frame& frame, double x, absl::string_view text) {
  return absl::StrCat(Line("grid", frame.X(x), frame.top, frame.X(x), frame.bottom()),
                      Text(frame.X(x), frame.bottom() + 16, text, "class=\"muted\" text-anchor=\"middle\""));
}

std::string TickY(const Frame& frame, double y, absl::string_view text) {
  return absl::StrCat(Line("grid", frame.left, frame.Y(y), frame.right(), frame.Y(y)),
                      Text(frame.left - 6, frame.Y(y) + 4, text, "class=\"muted\" text-anchor=\"end\""));
}

std::string AxisNames(const Frame& frame, absl::string_view x, absl::string_view y) {
  return absl::StrCat(Text(frame.left + frame.width / 2, frame.bottom() + 36, x, "text-anchor=\"middle\""),
                      Text(frame.left - 62, frame.top - 14, y));
}

// Percentile q is drawn at log10(1 / (1 - q)): 90, 99 and 99.9 are equally far apart.
double PercentileAt(double x) { return 1 - std::pow(10, -x); }

std::string Curve(const Frame& frame, const LatencyHistogram& histogram, absl::string_view style) {
  std::string points;
  for (int step = 0; step <= kCurveSteps; ++step) {
    const double x = frame.x_end * step / kCurveSteps;
    const auto nanos = static_cast<double>(std::max<uint64_t>(1, histogram.Quantile(PercentileAt(x))));
    absl::StrAppendFormat(&points, "%.1f,%.1f ", frame.X(x), frame.Y(std::log10(nanos)));
  }
  return absl::StrCat("<polyline class=\"", style, "\" points=\"", points, "\"/>\n");
}

std::string Mark(const Frame& frame, const LatencyHistogram& histogram, double percentile, absl::string_view name) {
  const double x = frame.X(-std::log10(1 - percentile));
  const auto nanos = static_cast<double>(std::max<uint64_t>(1, histogram.Quantile(percentile)));
  const double y = frame.Y(std::log10(nanos));
  // Above the curve, which rises: far to the right it would run through a text that begins here.
  const char* const anchor = x < frame.left + frame.width / 2 - 1 ? "text-anchor=\"start\"" : "text-anchor=\"end\"";
  return absl::StrCat(absl::StrFormat("<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n", x, y),
                      Text(x, y - 15, absl::StrCat(name, " ", NanosText(nanos)), anchor));
}

// Whole steps of 1, 2 and 5 times a power of ten, as far as they lie in [begin, end] (logarithms).
std::vector<double> LogTicks(double begin, double end) {
  const bool few = end - begin > 3;  // Then powers of ten only.
  std::vector<double> ticks;
  for (double power = std::floor(begin); power <= end; ++power) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      const double tick = power + std::log10(digit);
      if ((digit > 1 && few) || tick < begin - 1e-9 || tick > end + 1e-9) continue;
      ticks.push_back(tick);
    }
  }
  return ticks;
}

std::string LatencyChart(const LoadReport& report) {
  const LatencyHistogram& latency = report.latency;
  const LatencyHistogram& service = report.service;
  Frame frame{.left = 80, .top = 110, .width = 380, .height = 240};
  // As many nines as there are requests to speak of them.
  frame.x_end = std::clamp(std::ceil(std::log10(static_cast<double>(latency.count()))), 2.0, 5.0);
  const auto fastest = static_cast<double>(std::max<uint64_t>(1, std::min(latency.Quantile(0), service.Quantile(0))));
  const auto slowest = static_cast<double>(std::max<uint64_t>(2, std::max(latency.max(), service.max())));
  frame.y_begin = std::log10(fastest) - 0.1;
  frame.y_end = std::log10(slowest) + 0.15;
  std::string chart = AxisNames(frame, "percentile of requests (%)", "latency (time, logarithmic)");
  const std::pair<double, const char*> percentiles[] = {{0, "0"},     {0.5, "50"},     {0.9, "90"},
                                                        {0.99, "99"}, {0.999, "99.9"}, {0.9999, "99.99"}};
  for (const auto& [percentile, name] : percentiles) {
    const double x = -std::log10(1 - percentile);
    if (x <= frame.x_end + 1e-9) chart += TickX(frame, x, name);
  }
  for (const double tick : LogTicks(frame.y_begin, frame.y_end)) {
    chart += TickY(frame, tick, NanosText(std::round(std::pow(10, tick))));
  }
  const bool late = report.late.max() > latency.max() / 100;
  if (late) chart += Curve(frame, service, "service");
  chart += Curve(frame, latency, "latency");
  chart += Mark(frame, latency, 0.5, "p50");
  chart += Mark(frame, latency, 0.99, "p99");
  chart +=
      Line("latency", 80, 74, 104, 74) + Text(110, 78, late ? "from the intended start" : "from sending to the answer");
  if (late) chart += Line("service", 260, 74, 284, 74) + Text(290, 78, "from sending");
  return chart;
}

// Answers per second of equal stretches of the run; the last one takes what is left over.
struct Bars {
  double width_seconds = LoadReport::kTimelineSeconds;
  std::vector<double> rates;
};

Bars BarsOf(const LoadReport& report) {
  Bars bars;
  const size_t merged = std::max<size_t>(1, (report.timeline.size() + kMaxBars - 1) / kMaxBars);
  bars.width_seconds *= static_cast<double>(merged);
  const auto count = static_cast<size_t>(std::max(1.0, std::round(report.seconds / bars.width_seconds)));
  bars.rates.assign(count, 0);
  for (size_t i = 0; i < report.timeline.size(); ++i) {
    bars.rates[std::min(i / merged, count - 1)] += static_cast<double>(report.timeline[i]);
  }
  for (size_t i = 0; i < count; ++i) {
    const double rest = report.seconds - static_cast<double>(i) * bars.width_seconds;
    bars.rates[i] /= i + 1 == count ? rest : bars.width_seconds;
  }
  return bars;
}

// 1, 2 or 5 times a power of ten, so that `end` takes four to ten of them.
double LinearStep(double end) {
  const double power = std::pow(10, std::floor(std::log10(end / 4)));
  const double digits = end / 4 / power;
  return power * (digits >= 5 ? 5 : digits >= 2 ? 2 : 1);
}

std::string ThroughputChart(const LoadReport& report) {
  const Bars bars = BarsOf(report);
  const double mean = static_cast<double>(report.succeeded) / report.seconds;
  Frame frame{.left = 560, .top = 110, .width = 370, .height = 240};
  frame.x_end = report.seconds;
  frame.y_end = 1.15 * std::max(mean, *std::max_element(bars.rates.begin(), bars.rates.end()));
  std::string chart = AxisNames(frame, "time since the warm-up (s)", "throughput (answers per second)");
  const double step_x = LinearStep(frame.x_end);
  for (int i = 0; i * step_x <= frame.x_end; ++i) chart += TickX(frame, i * step_x, absl::StrFormat("%g", i * step_x));
  const double step_y = LinearStep(frame.y_end);
  for (int i = 0; i * step_y <= frame.y_end; ++i) chart += TickY(frame, i * step_y, absl::StrFormat("%g", i * step_y));
  for (size_t i = 0; i < bars.rates.size(); ++i) {
    const double begin = static_cast<double>(i) * bars.width_seconds;
    const double end = i + 1 == bars.rates.size() ? report.seconds : begin + bars.width_seconds;
    const double top = frame.Y(bars.rates[i]);
    absl::StrAppendFormat(&chart, "<rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
                          frame.X(begin) + 0.5, top, std::max(0.5, frame.X(end) - frame.X(begin) - 1),
                          frame.bottom() - top);
  }
  chart += Line("mean", frame.left, frame.Y(mean), frame.right(), frame.Y(mean));
  chart += Text(frame.right(), frame.top - 14, absl::StrFormat("mean %.1f/s", mean), "text-anchor=\"end\"");
  return chart;
}

int64_t Errors(const LoadReport& report) {
  int64_t errors = 0;
  for (const auto& [code, count] : report.errors) errors += count;
  return errors;
}

}  // namespace

std::string ToSvg(const LoadReport& report, absl::string_view title) {
  std::string svg = absl::StrFormat(kHead, kWidth, kHeight, kWidth, kHeight);
  absl::StrAppend(&svg, "<title>", Escape(title), "</title>\n", Text(18, 28, title, "class=\"title\""));
  if (report.succeeded == 0 || report.seconds <= 0) {
    return absl::StrCat(svg, Text(18, 50, absl::StrCat("no request was answered; ", Errors(report), " errors")),
                        "</svg>\n");
  }
  const std::string totals = absl::StrFormat("%d requests in %.2f s, %d errors; %s; p99.9 %s, max %s", report.succeeded,
                                             report.seconds, Errors(report), FlopsText(report.flops / report.seconds),
                                             NanosText(static_cast<double>(report.latency.Quantile(0.999))),
                                             NanosText(static_cast<double>(report.latency.max())));
  absl::StrAppend(&svg, Text(18, 50, totals, "class=\"muted\""), LatencyChart(report), ThroughputChart(report),
                  "</svg>\n");
  return svg;
}

}  // namespace gemmd
