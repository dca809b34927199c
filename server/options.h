// SPDX-License-Identifier: Apache-2.0
// Everything that an operator can set, with the limits and their reasons, and the rules that hold between them. Filled
// from flags in server/main.cc; plain values from there on.
#ifndef GEMMD_SERVER_OPTIONS_H_
#define GEMMD_SERVER_OPTIONS_H_

#include "server/quotas.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include <cstdint>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace gemmd {

// Where gRPC is served.
struct ListenAddresses {
  std::string unix_path;         // Required: the broker listens beside it.
  std::vector<std::string> tcp;  // HOST:PORT; port 0 takes a free one.
};

// PEM files; the three go together. Read again when they change.
struct TlsFiles {
  std::string certificate;
  std::string key;
  std::string client_authority;  // Clients must show a certificate of this authority.

  bool empty() const { return certificate.empty() && key.empty() && client_authority.empty(); }
};

// No flag of gemmd holds a secret: keys and tokens come from files, whose paths flags name.
struct FlagValue {
  std::string name;
  std::string value;
  bool is_default = false;
};

struct ServerOptions {
  ListenAddresses listen;
  std::string metrics_listen;        // HOST:PORT; empty: no metrics.
  std::vector<std::string> workers;  // Devices: "cpu", or the UUID of a GPU.
  std::string worker_binary;
  int worker_threads = 0;        // Of a CPU worker; 0: one per core.
  int spin_us = -1;              // How long threads that wait poll before they sleep; -1: as the machine allows.
  std::string kernel_cache_dir;  // Of GPU workers; empty: kernels are compiled at every start.
  bool merging = true;
  TlsFiles tls;
  // Users who may open sessions at the broker; unset: everybody whom the mode of its socket lets in.
  std::optional<std::vector<uid_t>> allow_uids;
  std::string token_file;       // Bearer tokens that calls on TCP need; empty: none. Read again when it changes.
  std::string warmup_manifest;  // Shapes that workers prepare before the daemon is ready; empty: none.
  std::vector<std::string> tensor_dirs;  // Directories whose files tensors may be made from; empty: none.
  std::string tensor_manifest;           // Tensors that are there before the daemon is ready; empty: none.
  bool insecure = false;                 // Allows TCP on other than loopback addresses without TLS.
  bool admin_over_tcp = false;
  std::string log_level = "info";
  std::string log_format = "text";  // Or "json".
  bool remote_debug_pages = false;  // Debug pages for other machines too, where metrics_listen is reachable.
  // Requests that are remembered for Admin.GetTrace and /tracez: some seconds of a busy daemon, in one megabyte.
  int trace_requests = 4096;
  std::vector<FlagValue> flags;  // All flags as they were given, for the page /configz.

  // From NOT_SERVING to refusing: how long load balancers take to notice.
  absl::Duration drain_delay = absl::Seconds(5);
  // For what was accepted before: longer than any product takes.
  absl::Duration drain_timeout = absl::Seconds(30);
  // Without one completed request while there are some: then a worker hangs, and is killed. Zero: never.
  absl::Duration worker_hang_timeout = absl::Seconds(10);
  // After which a connection is asked to go once its calls are done, so that clients look for servers again; infinite:
  // never.
  absl::Duration max_connection_age = absl::InfiniteDuration();
  // For workers to say that they are ready; a GPU worker compiles kernels first.
  absl::Duration worker_start_timeout = absl::Seconds(60);

  // One request or response. Inline operands of this size take tens of milliseconds in gRPC; larger ones belong in
  // regions.
  int64_t max_message_bytes = int64_t{64} << 20;
  // All inline bytes in flight: eight of the largest requests with their results.
  int64_t arena_bytes = int64_t{1} << 30;
  // Credentials and session metadata take some hundred bytes.
  int max_metadata_bytes = 16 << 10;
  // Calls of one connection; a client with more in flight should use the stream.
  int max_concurrent_streams = 1024;
  // gRPC's own buffers, mostly messages: as much again as the arena.
  int64_t grpc_memory_bytes = int64_t{1} << 30;
  Quotas quotas;
};

// "unix:PATH,HOST:PORT,...": exactly one Unix path. Errors: INVALID_ARGUMENT.
absl::StatusOr<ListenAddresses> ParseListen(absl::string_view text);

// What this machine and this build can run workers on.
struct DeviceSupport {
  std::vector<std::string> gpus;  // UUIDs ("GPU-...") of the Hopper GPUs.
  std::string why_no_gpu;         // One line, if there are none.
};

// "auto" (every Hopper GPU; the CPU if there is none), or a comma-separated list of "cpu", "gpu" (all GPUs), "gpu:N"
// and UUIDs; a device may be named twice. Returns the devices: "cpu" or UUIDs. Errors: INVALID_ARGUMENT (syntax),
// FAILED_PRECONDITION (no such device).
absl::StatusOr<std::vector<std::string>> ParseWorkers(absl::string_view text, const DeviceSupport& support);

// Numeric user ids, comma-separated; none of them: unset, everybody. Errors: INVALID_ARGUMENT.
absl::StatusOr<std::optional<std::vector<uid_t>>> ParseUids(absl::string_view text);

// Absolute paths, comma-separated; empty: none. Errors: INVALID_ARGUMENT.
absl::StatusOr<std::vector<std::string>> ParseTensorDirectories(absl::string_view text);

// True for addresses that only this machine can reach.
bool IsLoopback(absl::string_view host_and_port);

// The rules between options: TLS files together, nothing for TCP without TCP, plain TCP only on loopback or with
// `insecure`, sizes in range. Errors: INVALID_ARGUMENT, naming the flag.
absl::Status Validate(const ServerOptions& options);

}  // namespace gemmd

#endif  // GEMMD_SERVER_OPTIONS_H_
