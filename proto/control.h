// SPDX-License-Identifier: Apache-2.0
// Messages of the control socket between the front end and one of its workers (a SOCK_SEQPACKET socketpair that the
// worker inherits). Each request has an id that its reply echoes; replies may come in any order. End of file on either
// side means that the other is gone.
#ifndef GEMMD_PROTO_CONTROL_H_
#define GEMMD_PROTO_CONTROL_H_

#include "proto/gpu_memory.h"
#include "proto/job.h"
#include "proto/shared_memory.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace gemmd {

inline constexpr uint32_t kControlVersion = 2;

// Exit statuses of a worker, for the supervisor and for people who read logs.
inline constexpr int kExitDeviceFault = 40;    // Sticky device error: restart me.
inline constexpr int kExitProtocolError = 41;  // The front end broke the protocol.
inline constexpr int kExitNoDevice = 42;       // The device asked for is not there: do not restart me.

enum class RegionKind : uint32_t {
  kHost = 1,          // Sealed memfd; may be mapped.
  kSharedMemory = 2,  // POSIX shared memory; unsealed: only pread and pwrite, or page-locked DMA.
  kTensor = 3,        // Memory of a resident tensor, as kAllocate returned it.
  kDevice = 4,        // The client's GPU memory with a descriptor (CUDA VMM); mapped with the access that is asked for.
  kDeviceIpc = 5,     // The client's GPU memory by its legacy handle; access is kept by the job check only.
  kPool = 6,          // Memory that kAllocate returned and the client maps too.
};

inline constexpr size_t kRegionKinds = 7;  // Index 0 stays empty.

// As in metrics, flags and pages.
constexpr const char* Name(RegionKind kind) {
  constexpr const char* kNames[kRegionKinds] = {"", "host", "shared_memory", "tensor", "device", "device_ipc", "pool"};
  return static_cast<size_t>(kind) < kRegionKinds ? kNames[static_cast<size_t>(kind)] : "";
}

// Whether the memory belongs to one GPU.
constexpr bool OnGpu(RegionKind kind) { return kind == RegionKind::kDevice || kind == RegionKind::kDeviceIpc; }

enum class ControlRequestType : uint32_t {
  kAttachRing = 1,   // fd: the front end's job ring. Reply at once; jobs may follow.
  kMapRegion = 2,    // region_id, region_kind, access, byte_size, fd; for kDeviceIpc ipc instead of fd.
  kCloseRegion = 3,  // region_id. Jobs in flight keep it; the reply comes when the last has gone.
  kAllocate = 4,     // region_id, byte_size: memory for a tensor or a pool, zeroed and mapped under that id. The reply
                     // carries an fd that any worker on this device can map as kTensor or kPool.
  kPrepare = 5,      // shape: make its kernels ready.
  kSetLogLevel = 6,  // log_level.
};

// A shape to prepare kernels for; 0 in m means all row counts.
struct PrepareShape {
  Op op = Op::kNone;
  Scaling scaling = Scaling::kUnset;
  DType d_dtype = DType::kNone;
  bool accumulate = false;
  uint8_t reserved[4] = {};
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t groups = 0;
};

struct ControlRequest {
  ControlRequestType type = ControlRequestType::kAttachRing;
  uint32_t version = kControlVersion;
  uint64_t request_id = 0;
  uint64_t region_id = 0;
  uint64_t byte_size = 0;
  RegionKind region_kind = RegionKind::kHost;
  Access access = Access::kReadWrite;
  uint8_t log_level = 0;  // kSetLogLevel: 0 (trace) to 6 (off), as spdlog counts.
  uint8_t reserved[2] = {};
  PrepareShape shape;
  IpcMemory ipc;  // kMapRegion of kDeviceIpc.
};
static_assert(sizeof(ControlRequest) == 176 && std::is_trivially_copyable_v<ControlRequest>);

// request_id 0: the worker's hello, sent once when it is ready for requests; device, name, memory_bytes, cores and mps
// are set only there.
struct ControlReply {
  uint64_t request_id = 0;
  uint32_t code = 0;  // absl::StatusCode.
  uint32_t version = kControlVersion;
  uint64_t memory_bytes = 0;
  uint32_t cores = 0;
  uint32_t kernels_ready = 0;     // kPrepare.
  uint32_t kernels_compiled = 0;  // kPrepare.
  uint32_t mps = 0;               // Hello: 1 if CUDA MPS shares the GPU between processes.
  char device[64] = {};           // GPU UUID, or "cpu".
  char name[64] = {};             // For people.
  char message[256] = {};
};
static_assert(sizeof(ControlReply) == 424 && std::is_trivially_copyable_v<ControlReply>);

}  // namespace gemmd

#endif  // GEMMD_PROTO_CONTROL_H_
