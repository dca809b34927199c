// SPDX-License-Identifier: Apache-2.0
// How GPU memory is named when it crosses a process: the GPU by its UUID, never by an ordinal, and memory of cudaMalloc
// by its legacy IPC handle. (Memory with a descriptor needs no name.) Plain values in the messages of the broker and of
// the control socket.
#ifndef GEMMD_PROTO_GPU_MEMORY_H_
#define GEMMD_PROTO_GPU_MEMORY_H_

#include "absl/status/status.h"

#include <cstdint>
#include <type_traits>

namespace gemmd {

// "GPU-" and 36 characters, as nvidia-smi prints it, and a terminating NUL.
inline constexpr int kGpuUuidBytes = 48;

// sizeof(cudaIpcMemHandle_t).
inline constexpr int kIpcHandleBytes = 64;

// Physical memory of a GPU comes in granules of this size. cudaMalloc puts allocations that are smaller into shared
// ones, and a handle shares all of its granule.
inline constexpr uint64_t kGpuGranule = uint64_t{2} << 20;

// A part of an allocation that another process made with cudaMalloc.
struct IpcMemory {
  uint8_t handle[kIpcHandleBytes] = {};  // cudaIpcGetMemHandle of the allocation's first byte.
  uint64_t allocation_bytes = 0;         // The whole allocation's, as cuMemGetAddressRange says.
  uint64_t offset = 0;                   // From the allocation's start to that of the region, in bytes.
  // Who made it: the process as it numbers itself, and which PID namespace that number is of (the inode of
  // /proc/self/ns/pid). CUDA takes a handle of a process with the importer's own number for the importer's.
  uint64_t pid_namespace = 0;
  int32_t pid = 0;
  uint32_t reserved = 0;
};
static_assert(sizeof(IpcMemory) == 96 && std::is_trivially_copyable_v<IpcMemory>);

// The inode of this process's PID namespace; 0 if /proc is not mounted.
uint64_t PidNamespace();

// FAILED_PRECONDITION if the memory's owner has the number of this process, which is to open it, in another PID
// namespace.
absl::Status CheckOwner(const IpcMemory& ipc);

// What is wrong then, and what helps.
absl::Status SamePidNumber();

}  // namespace gemmd

#endif  // GEMMD_PROTO_GPU_MEMORY_H_
