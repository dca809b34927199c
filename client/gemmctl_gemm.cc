// SPDX-License-Identifier: Apache-2.0
// gemmctl gemm: one operation of random operands, timed and, with --check, compared with the FP64 reference.
#include "client/gemmctl_commands.h"
#include "client/problem.h"
#include "client/stored_array.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

#include <algorithm>
#include <limits>

namespace gemmd {
namespace {

using Json = nlohmann::json;

absl::StatusOr<GroupEncoding> ParseEncoding(const std::string& name) {
  if (name == "offsets") return GroupEncoding::kOffsets;
  if (name == "row_index") return GroupEncoding::kRowIndex;
  if (name == "aligned_ends") return GroupEncoding::kAlignedEnds;
  return absl::InvalidArgumentError(
      absl::StrCat("encoding: expected offsets, row_index or aligned_ends, got \"", name, "\""));
}

absl::StatusOr<ProblemSpec> SpecOf(const CommandOptions& options) {
  ProblemSpec spec;
  const absl::StatusOr<Op> op = ParseOp(options.op);
  if (!op.ok()) return op.status();
  const bool k_grouped = *op == Op::kKGrouped;
  const std::string by_default = k_grouped ? "1d1d" : "1d2d";
  const absl::StatusOr<Scaling> scaling = ParseScaling(options.scaling.empty() ? by_default : options.scaling);
  if (!scaling.ok()) return scaling.status();
  const absl::StatusOr<DType> d_dtype =
      ParseDType(options.d_dtype.empty() ? (k_grouped ? "f32" : "bf16") : options.d_dtype);
  if (!d_dtype.ok()) return d_dtype.status();
  if (*d_dtype != DType::kBf16 && *d_dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat("d_dtype: expected bf16 or f32, got ", options.d_dtype));
  }
  const absl::StatusOr<GroupEncoding> encoding = ParseEncoding(options.encoding);
  if (!encoding.ok()) return encoding.status();
  if (options.iterations < 1) return absl::InvalidArgumentError("iterations: expected at least 1");
  if (!options.a_dtype.empty() && options.a_dtype != "bf16" && options.a_dtype != "e4m3") {
    return absl::InvalidArgumentError(absl::StrCat("a_dtype: expected bf16 or e4m3, got ", options.a_dtype));
  }
  const bool bf16 = *scaling == Scaling::kNone;
  if (bf16 && options.a_dtype == "e4m3") {
    return absl::InvalidArgumentError("a_dtype: expected bf16 with --scaling=bf16, got e4m3");
  }
  if (options.accumulate && *d_dtype != DType::kF32)
    return absl::InvalidArgumentError("accumulate: expected d_dtype f32");
  spec.op = *op;
  spec.scaling = *scaling;
  spec.bf16_a = !bf16 && options.a_dtype == "bf16";
  spec.d_dtype = *d_dtype;
  spec.encoding = *encoding;
  spec.accumulate = options.accumulate;
  spec.m = options.m;
  spec.n = options.n;
  spec.k = options.k;
  spec.groups = *op == Op::kDense || *op == Op::kQuantize ? 0 : options.groups;
  return spec;
}

}  // namespace

absl::Status RunGemm(const CommandOptions& options) {
  const absl::StatusOr<ProblemSpec> spec = SpecOf(options);
  if (!spec.ok()) return spec.status();
  const absl::StatusOr<Transport> transport = ParseTransport(options.transport);
  if (!transport.ok()) return transport.status();
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, options.connect);
  if (!client.ok()) return client.status();
  std::shared_ptr<const Weights> weights;
  if (spec->op != Op::kQuantize) {
    const auto made = Weights::Create(client->get(), *spec, *transport, options.seed);
    if (!made.ok()) return made.status();
    weights = *made;
  }
  const auto problem = Problem::Create(client->get(), *spec, *transport, weights, options.seed);
  if (!problem.ok()) return problem.status();
  absl::Duration best = absl::InfiniteDuration();
  v1::RunResponse last;
  for (int64_t i = 0; i < options.iterations; ++i) {
    if (absl::Status status = (*problem)->ResetResult(); !status.ok()) return status;
    const absl::Time start = absl::Now();
    absl::StatusOr<v1::RunResponse> response = (*client)->Run((*problem)->request());
    best = std::min(best, absl::Now() - start);
    if (!response.ok()) return response.status();
    last = *std::move(response);
  }
  const double seconds = absl::ToDoubleSeconds(best);
  Json json = {{"op", std::string(Name(spec->op))},
               {"shape", ShapeText(*spec)},
               {"transport", std::string(Name(*transport))},
               {"iterations", options.iterations},
               {"seconds", seconds},
               {"flops_per_second", FlopsOf(*spec) / seconds},
               {"decode_seconds", static_cast<double>(last.times().decode_ns()) / 1e9},
               {"queue_seconds", static_cast<double>(last.times().queue_ns()) / 1e9},
               {"device_seconds", static_cast<double>(last.times().device_ns()) / 1e9},
               {"reply_seconds", static_cast<double>(last.times().reply_ns()) / 1e9},
               {"batch_jobs", last.batch_jobs()}};
  std::string error_text = "not checked";
  if (options.check) {
    const absl::StatusOr<reference::Error> error = (*problem)->Check(last);
    if (!error.ok()) return error.status();
    json["check"] = {{"relative_frobenius", error->relative_frobenius},
                     {"max_over_rms", error->max_over_rms},
                     {"difference", error->difference},
                     {"elements", error->elements}};
    error_text = absl::StrFormat("%.2e", error->relative_frobenius);
  }
  TextTable table({"op", "shape", "transport", "time", "rate", "device time", "error"});
  table.Add({std::string(Name(spec->op)), ShapeText(*spec), std::string(Name(*transport)), NanosText(seconds * 1e9),
             FlopsText(FlopsOf(*spec) / seconds), NanosText(static_cast<double>(last.times().device_ns())),
             error_text});
  Print(options, json, table.ToString());
  return absl::OkStatus();
}

}  // namespace gemmd
