// SPDX-License-Identifier: Apache-2.0
// The commands of gemmctl. Each gets its options as plain values (flags are read in gemmctl.cc only), prints its result
// to standard output, and returns why it failed. One file for each group of commands.
#ifndef GEMMD_CLIENT_GEMMCTL_COMMANDS_H_
#define GEMMD_CLIENT_GEMMCTL_COMMANDS_H_

#include "client/client.h"
#include "client/text_table.h"

#include "absl/status/status.h"
#include "absl/time/time.h"
#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

struct CommandOptions {
  std::string server;
  ConnectOptions connect;
  bool json = false;
  std::vector<std::string> arguments;  // After the command.

  // gemm
  int64_t m = 0, n = 0, k = 0, groups = 0;
  std::string op, scaling, transport, a_dtype, d_dtype, encoding;
  bool accumulate = false;
  int64_t iterations = 1;
  bool check = false;
  uint64_t seed = 1;

  // put, get
  std::string name, tensor, dtype, quantize;
  bool server_file = false, transpose = false;

  // health, warmup
  absl::Duration wait;
  std::string service;
  std::vector<std::string> shapes;
  std::string manifest;

  // trace
  std::string output;

  // top
  absl::Duration interval;
  int64_t updates = 0;
};

// gemmctl_operator.cc
absl::Status RunInfo(const CommandOptions& options);
absl::Status RunHealth(const CommandOptions& options);
absl::Status RunWarmUp(const CommandOptions& options);
absl::Status RunDrain(const CommandOptions& options);
absl::Status RunLogLevel(const CommandOptions& options);
absl::Status RunTrace(const CommandOptions& options);
// gemmctl_top.cc
absl::Status RunTop(const CommandOptions& options);
// gemmctl_tensors.cc
absl::Status RunPut(const CommandOptions& options);
absl::Status RunGet(const CommandOptions& options);
absl::Status RunList(const CommandOptions& options);
absl::Status RunRemove(const CommandOptions& options);
// gemmctl_gemm.cc
absl::Status RunGemm(const CommandOptions& options);
// gemmctl_demo.cc
absl::Status RunDemo(const CommandOptions& options);

// Prints the one document or the one table of a command.
void Print(const CommandOptions& options, const nlohmann::json& json, const std::string& text);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_GEMMCTL_COMMANDS_H_
