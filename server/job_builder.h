// SPDX-License-Identifier: Apache-2.0
// From a gemmd.v1.RunRequest to a job descriptor: names become regions, inline bytes are copied once into the staging
// arena, defaults are filled in. Used by the Gemm service on reactor threads.
//
// Only what the translation itself needs is checked here (an inline operand must have as many bytes as its shape says,
// a value must fit its field). Shapes, dtypes, strides, bounds and overlaps are checked in the worker and nowhere else.
#ifndef GEMMD_SERVER_JOB_BUILDER_H_
#define GEMMD_SERVER_JOB_BUILDER_H_

#include "gemmd/v1/gemm.pb.h"
#include "proto/job.h"
#include "proto/worker_counters.h"
#include "server/region_registry.h"
#include "server/session.h"
#include "server/staging_arena.h"
#include "server/tensor_registry.h"
#include "server/worker_pool.h"

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {

// How a request's operands came, for metrics: kDevice if any of them is a slice of a region on a GPU, else kHost if any
// is one of host memory, else kTensor if any is a resident tensor, else kInline.
enum class Transport : uint8_t { kInline = 0, kHost = 1, kTensor = 2, kDevice = 3 };
inline constexpr int kTransportCount = 4;

// Bytes of operands, by Transport and Direction.
using IoBytes = std::array<std::array<uint64_t, kDirections>, kTransportCount>;

// A descriptor and everything that must stay alive until its job is done. Move-only.
struct BuiltJob {
  JobDescriptor descriptor;
  WorkerMask workers = kAllWorkers;  // Those that reach all operands.
  Transport transport = Transport::kInline;
  std::array<Transport, kOperandCount> transports{};  // How each operand came.
  ArenaLease lease;                                   // All inline operands and outputs.
  std::vector<TensorView> pins;
  uint64_t d_offset = 0;  // Inline results, in bytes from the start of the lease.
  uint64_t d_bytes = 0;
  uint64_t sf_offset = 0;
  uint64_t sf_bytes = 0;

  absl::Span<const std::byte> d() const { return {lease.data() + d_offset, d_bytes}; }
  absl::Span<const std::byte> sf() const { return {lease.data() + sf_offset, sf_bytes}; }
};

// Where names are looked up. All outlive the builder.
struct Memory {
  RegionRegistry& regions;
  TensorRegistry& tensors;
  StagingArena& arena;
};

// Thread-safe.
class JobBuilder {
 public:
  // Inline results longer than `max_inline_bytes` are refused: they would not fit into a message.
  JobBuilder(Memory memory, uint64_t max_inline_bytes) : memory_(memory), max_inline_bytes_(max_inline_bytes) {}

  // The deadline is left for the caller to set. Errors name the field: INVALID_ARGUMENT, NOT_FOUND, UNAUTHENTICATED (a
  // slice, or tensor that is not of the manifest, without a session), PERMISSION_DENIED (result in a
  // tensor of the manifest), FAILED_PRECONDITION (region closing; operands on different devices),
  // RESOURCE_EXHAUSTED (arena).
  absl::StatusOr<BuiltJob> Build(const v1::RunRequest& request, const Session& session) const;

 private:
  const Memory memory_;
  const uint64_t max_inline_bytes_;
};

// What a job that the worker found legal reads and writes: its operands, whole, as the request names them.
IoBytes IoBytesOf(const BuiltJob& job);

// Op::kNone if the request has no operation.
Op OpOf(const v1::RunRequest& request);

}  // namespace gemmd

#endif  // GEMMD_SERVER_JOB_BUILDER_H_
