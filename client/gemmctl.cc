// SPDX-License-Identifier: Apache-2.0
// gemmctl: gemmd from a shell. Flags and dispatch; the commands are in gemmctl_*.cc.
#include "client/connect_flags.h"
#include "client/gemmctl_commands.h"
#include "proto/lock_checks.h"

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

ABSL_FLAG(bool, json, false, "Print one JSON document instead of a table.");
ABSL_FLAG(absl::Duration, timeout, absl::Minutes(2), "Longest time of one call.");
ABSL_FLAG(int64_t, m, 64, "gemm: rows of A (masked: of each group at most; k_grouped: of each group).");
ABSL_FLAG(int64_t, n, 512, "gemm: rows of B (of each group).");
ABSL_FLAG(int64_t, k, 512, "gemm: columns of A and B (k_grouped: of all groups together).");
ABSL_FLAG(int64_t, groups, 4, "gemm: groups of a grouped operation.");
ABSL_FLAG(std::string, op, "dense", "gemm: dense, contiguous, masked, k_grouped or quantize.");
ABSL_FLAG(std::string, scaling, "", "gemm: 1d2d, 1d1d or bf16. Default: 1d1d for k_grouped, otherwise 1d2d.");
ABSL_FLAG(
    std::string, transport, "host",
    "gemm: inline, host, shm, tensor (resident B, the rest inline), pool (gemmd's memory on its device), device or "
    "device_ipc (this process's GPU memory).");
ABSL_FLAG(std::string, a_dtype, "", "gemm: bf16: A is quantized on the way in. Default: the type of B.");
ABSL_FLAG(std::string, d_dtype, "", "gemm: bf16 or f32. Default: f32 for k_grouped, otherwise bf16.");
ABSL_FLAG(std::string, encoding, "offsets", "gemm --op=contiguous: offsets, row_index or aligned_ends.");
ABSL_FLAG(bool, accumulate, false, "gemm: add to D (needs --d_dtype=f32 and host or shm).");
ABSL_FLAG(int64_t, iterations, 1, "gemm: how often to run it; the best time is reported.");
ABSL_FLAG(bool, check, false,
          "gemm: compare the last result with the FP64 reference; outside its limits is a failure.");
ABSL_FLAG(uint64_t, seed, 1, "gemm, demo: seed of the random operands.");
ABSL_FLAG(std::string, name, "", "put: name of the tensor. Default: the file's name without its suffix.");
ABSL_FLAG(std::string, tensor, "", "put: which tensor of a safetensors file. Default: the only one.");
ABSL_FLAG(std::string, dtype, "", "put of .npy: e4m3 (stored as uint8) or bf16 (stored as uint16).");
ABSL_FLAG(bool, server_file, false,
          "put: FILE is a .safetensors file on gemmd's machine, relative to one of its --tensor_dirs.");
ABSL_FLAG(bool, transpose, false, "put: the file has [K,N] or [G,K,N]; store [N,K] or [G,N,K].");
ABSL_FLAG(std::string, quantize, "",
          "put: 1x128 or 128x128: store bf16 or f32 as e4m3, and the scale factors as NAME.sf.");
ABSL_FLAG(absl::Duration, wait, absl::ZeroDuration(), "health: wait this long for SERVING.");
ABSL_FLAG(std::string, service, "", "health: service to ask about; empty: the daemon as a whole.");
ABSL_FLAG(std::vector<std::string>, shapes, {}, "warmup: MxNxK or GxMxNxK, comma-separated; M=0: all row counts.");
ABSL_FLAG(absl::Duration, interval, absl::Seconds(1), "top: between updates.");
ABSL_FLAG(int64_t, updates, 0, "top: how many; 0: until it is interrupted.");
ABSL_FLAG(std::string, output, "", "trace: the file to write; empty: standard output.");
ABSL_FLAG(std::string, manifest, "", "warmup: JSON file of shapes, as gemmd --warmup_manifest takes it, instead.");

namespace {

using gemmd::CommandOptions;

constexpr char kUsage[] = R"(gemmctl: gemmd from a shell.

  gemmctl [--server=ADDRESS] [--json] COMMAND [ARGUMENTS] [FLAGS]

  info                 what runs: version, workers, sessions, memory
  health               SERVING or not; --wait=30s waits for it
  gemm                 one product of random operands: --op --m --n --k --groups --scaling --transport --a_dtype
                       --d_dtype --encoding --accumulate --iterations --check
  demo                 DeepSeek-V3-shaped products through every transport, each checked against FP64
  put FILE             stores a .npy or .safetensors file as a shared resident tensor: --name --tensor --dtype
                       --server_file --transpose --quantize
  get NAME|ID FILE     reads a tensor back into a .npy or .safetensors file
  list                 resident tensors
  rm NAME|ID           removes a tensor
  warmup               makes kernels ready: --shapes=64x2112x7168,8x0x4096x7168 --scaling --d_dtype, or --manifest=FILE
  drain                finish what was accepted, then exit
  top                  workers and the requests of the latest --interval, until interrupted: --interval=1s --updates=N
  trace                the latest requests as a file for trace viewers (Perfetto, chrome://tracing): --output=FILE
  loglevel LEVEL       trace, debug, info, warning, error, critical or off
  help                 this text

Results go to standard output, diagnostics to standard error; the exit status is 0 only for success.
Flags: gemmctl --help)";

struct Command {
  const char* name;
  size_t arguments;
  absl::Status (*run)(const CommandOptions&);
};
constexpr Command kCommands[] = {
    {"info", 0, gemmd::RunInfo},   {"health", 0, gemmd::RunHealth},     {"gemm", 0, gemmd::RunGemm},
    {"demo", 0, gemmd::RunDemo},   {"put", 1, gemmd::RunPut},           {"get", 2, gemmd::RunGet},
    {"list", 0, gemmd::RunList},   {"rm", 1, gemmd::RunRemove},         {"warmup", 0, gemmd::RunWarmUp},
    {"drain", 0, gemmd::RunDrain}, {"loglevel", 1, gemmd::RunLogLevel}, {"trace", 0, gemmd::RunTrace},
    {"top", 0, gemmd::RunTop},
};

absl::StatusOr<CommandOptions> OptionsFromFlags() {
  CommandOptions options;
  const absl::StatusOr<gemmd::ServerToConnect> server = gemmd::ServerFromFlags("gemmctl");
  if (!server.ok()) return server.status();
  options.server = server->address;
  options.connect = server->options;
  options.connect.call_timeout = absl::GetFlag(FLAGS_timeout);
  options.json = absl::GetFlag(FLAGS_json);
  options.m = absl::GetFlag(FLAGS_m);
  options.n = absl::GetFlag(FLAGS_n);
  options.k = absl::GetFlag(FLAGS_k);
  options.groups = absl::GetFlag(FLAGS_groups);
  options.op = absl::GetFlag(FLAGS_op);
  options.scaling = absl::GetFlag(FLAGS_scaling);
  options.transport = absl::GetFlag(FLAGS_transport);
  options.a_dtype = absl::GetFlag(FLAGS_a_dtype);
  options.d_dtype = absl::GetFlag(FLAGS_d_dtype);
  options.encoding = absl::GetFlag(FLAGS_encoding);
  options.accumulate = absl::GetFlag(FLAGS_accumulate);
  options.iterations = absl::GetFlag(FLAGS_iterations);
  options.check = absl::GetFlag(FLAGS_check);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.name = absl::GetFlag(FLAGS_name);
  options.tensor = absl::GetFlag(FLAGS_tensor);
  options.dtype = absl::GetFlag(FLAGS_dtype);
  options.server_file = absl::GetFlag(FLAGS_server_file);
  options.transpose = absl::GetFlag(FLAGS_transpose);
  options.quantize = absl::GetFlag(FLAGS_quantize);
  options.wait = absl::GetFlag(FLAGS_wait);
  options.service = absl::GetFlag(FLAGS_service);
  options.shapes = absl::GetFlag(FLAGS_shapes);
  options.manifest = absl::GetFlag(FLAGS_manifest);
  options.output = absl::GetFlag(FLAGS_output);
  options.interval = absl::GetFlag(FLAGS_interval);
  options.updates = absl::GetFlag(FLAGS_updates);
  return options;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "gemmctl: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  gemmd::DropLockOrderChecks();
  gemmd::DescribeProgram(kUsage, __FILE__);
  const std::vector<char*> words = absl::ParseCommandLine(argc, argv);
  const std::string name = words.size() < 2 ? "" : words[1];
  if (name == "help") {
    std::printf("%s\n", kUsage);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (name != command.name) continue;
    absl::StatusOr<CommandOptions> options = OptionsFromFlags();
    if (!options.ok()) return Fail(options.status());
    options->arguments.assign(words.begin() + 2, words.end());
    if (options->arguments.size() != command.arguments) {
      return Fail(absl::InvalidArgumentError(absl::StrCat(name, ": expected ", command.arguments, " arguments, got ",
                                                          options->arguments.size(), " (see gemmctl help)")));
    }
    const absl::Status status = command.run(*options);
    return status.ok() ? 0 : Fail(status);
  }
  std::fprintf(stderr, "gemmctl: expected a command, got \"%s\"\n\n%s\n", name.c_str(), kUsage);
  return 2;
}
