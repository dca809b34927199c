// SPDX-License-Identifier: Apache-2.0
// A CUDA driver without a GPU: libcuda.so.1 for programs that share GPU memory (client/cuda_driver.h), with two GPUs
// whose memory is memfds. It keeps the rules that matter to sharing: granules of 2 MiB, descriptors and legacy handles,
// mappings that may not exceed what they map, an allocation that lives while a handle or a descriptor does, a buffer id
// that is never given twice. Memory in use is the machine's shared memory, others' too. Put its folder into
// LD_LIBRARY_PATH.
#include "tests/gpu/fake_cuda.h"

#include "client/cuda_driver.h"
#include "proto/gpu_memory.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

using gemmd::cuda::Access;
using gemmd::cuda::Address;
using gemmd::cuda::AllocationProperties;
using gemmd::cuda::Context;
using gemmd::cuda::IpcHandle;
using gemmd::cuda::kInvalidValue;
using gemmd::cuda::kOutOfMemory;
using gemmd::cuda::kSuccess;
using gemmd::cuda::MemoryHandle;
using gemmd::cuda::Uuid;

constexpr int kGpus = static_cast<int>(std::size(gemmd::testing::kFakeGpus));
constexpr int kInvalidContext = 201;
constexpr int kBufferId = 7;  // CU_POINTER_ATTRIBUTE_BUFFER_ID
constexpr uint64_t kMemoryBytes = uint64_t{1} << 32;

struct Range {
  uint64_t byte_size = 0;
  int device = 0;
  int fd = -1;  // Of legacy memory; -1: reserved for mappings.
  uint64_t buffer_id = 0;
};

struct Driver {
  std::mutex mutex;
  std::map<Address, Range> ranges;
  std::map<MemoryHandle, uint64_t> handles;  // Descriptor + 1, and size.
  int contexts[kGpus] = {};                  // Retained.
  int waits[kGpus] = {};
  uint64_t buffer_ids = 0;  // Given so far.
};

Driver& State() {
  static Driver* const driver = new Driver;  // Never destroyed: other threads may still call at exit.
  return *driver;
}

thread_local int current_context[16];
thread_local int current_depth = 0;

// The device whose context is current; -1: none.
int CurrentDevice() { return current_depth == 0 ? -1 : current_context[current_depth - 1]; }

uint64_t FileBytes(int fd) {
  struct stat status {};
  return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? static_cast<uint64_t>(status.st_size) : 0;
}

int NewMemory(uint64_t byte_size) {
  if (byte_size == 0 || byte_size > kMemoryBytes) return -1;
  const int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
  if (fd >= 0 && ftruncate(fd, static_cast<off_t>(byte_size)) == 0) return fd;
  close(fd);
  return -1;
}

void* Pointer(Address address) { return reinterpret_cast<void*>(static_cast<uintptr_t>(address)); }

// The range that holds an address, or none.
std::map<Address, Range>::iterator RangeOf(Driver& driver, Address address) {
  auto after = driver.ranges.upper_bound(address);
  if (after == driver.ranges.begin()) return driver.ranges.end();
  --after;
  return address - after->first < after->second.byte_size ? after : driver.ranges.end();
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorName(int result, const char** name) {
  *name = result == kInvalidValue  ? "CUDA_ERROR_INVALID_VALUE"
          : result == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY"
                                   : "CUDA_ERROR_OTHER";
  return kSuccess;
}

int cuDeviceGetCount(int* count) {
  *count = kGpus;
  return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal < kGpus ? kSuccess : kInvalidValue;
}

int cuDeviceGetUuid(Uuid* uuid, int device) {
  std::memset(uuid->bytes, device, sizeof(uuid->bytes));
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(Context* context, int device) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  ++State().contexts[device];
  *context = &State().contexts[device];
  return kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  return --State().contexts[device] >= 0 ? kSuccess : kInvalidContext;
}

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  *flags = 0;
  *active = State().contexts[device] > 0 ? 1 : 0;
  return kSuccess;
}

int cuCtxPushCurrent_v2(Context context) {
  current_context[current_depth++] = static_cast<int>(static_cast<int*>(context) - State().contexts);
  return kSuccess;
}

int cuCtxPopCurrent_v2(Context* context) {
  if (current_depth == 0) return kInvalidContext;
  *context = &State().contexts[current_context[--current_depth]];
  return kSuccess;
}

int cuCtxSynchronize() {
  if (CurrentDevice() < 0) return kInvalidContext;
  const std::lock_guard<std::mutex> lock(State().mutex);
  ++State().waits[CurrentDevice()];
  return kSuccess;
}

// Not the driver's: how often cuCtxSynchronize waited for a device.
int FakeCudaWaits(int device) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  return State().waits[device];
}

int cuStreamSynchronize(void*) { return CurrentDevice() < 0 ? kInvalidContext : kSuccess; }

int cuMemGetAllocationGranularity(size_t* byte_size, const AllocationProperties*, int) {
  *byte_size = gemmd::kGpuGranule;
  return kSuccess;
}

int cuMemCreate(MemoryHandle* handle, size_t byte_size, const AllocationProperties* properties, unsigned long long) {
  if (byte_size % gemmd::kGpuGranule != 0 || properties->location.id >= kGpus) return kInvalidValue;
  const int fd = NewMemory(byte_size);
  if (fd < 0) return kOutOfMemory;
  const std::lock_guard<std::mutex> lock(State().mutex);
  *handle = static_cast<MemoryHandle>(fd) + 1;
  State().handles.emplace(*handle, byte_size);
  return kSuccess;
}

int cuMemRelease(MemoryHandle handle) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  if (State().handles.erase(handle) == 0) return kInvalidValue;
  close(static_cast<int>(handle) - 1);
  return kSuccess;
}

int cuMemExportToShareableHandle(void* descriptor, MemoryHandle handle, int, unsigned long long) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  if (State().handles.count(handle) == 0) return kInvalidValue;
  *static_cast<int*>(descriptor) = dup(static_cast<int>(handle) - 1);
  return kSuccess;
}

int cuMemImportFromShareableHandle(MemoryHandle* handle, void* descriptor, int) {
  const int fd = dup(static_cast<int>(reinterpret_cast<intptr_t>(descriptor)));
  const uint64_t byte_size = FileBytes(fd);
  if (byte_size == 0) {
    close(fd);
    return kInvalidValue;
  }
  const std::lock_guard<std::mutex> lock(State().mutex);
  *handle = static_cast<MemoryHandle>(fd) + 1;
  State().handles.emplace(*handle, byte_size);
  return kSuccess;
}

int cuMemAddressReserve(Address* address, size_t byte_size, size_t, Address, unsigned long long) {
  void* const reserved = mmap(nullptr, byte_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return kOutOfMemory;
  *address = static_cast<Address>(reinterpret_cast<uintptr_t>(reserved));
  const std::lock_guard<std::mutex> lock(State().mutex);
  State().ranges.emplace(*address, Range{byte_size, CurrentDevice(), -1, ++State().buffer_ids});
  return kSuccess;
}

int cuMemAddressFree(Address address, size_t byte_size) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  State().ranges.erase(address);
  return munmap(Pointer(address), byte_size) == 0 ? kSuccess : kInvalidValue;
}

int cuMemMap(Address address, size_t byte_size, size_t offset, MemoryHandle handle, unsigned long long) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  const auto found = State().handles.find(handle);
  // A memfd of gemmd's fake worker need not be whole granules.
  const uint64_t granules = found == State().handles.end()
                                ? 0
                                : (found->second + gemmd::kGpuGranule - 1) / gemmd::kGpuGranule * gemmd::kGpuGranule;
  if (offset != 0 || byte_size > granules) return kInvalidValue;
  const int fd = static_cast<int>(handle) - 1;
  return mmap(Pointer(address), byte_size, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? kInvalidValue
                                                                                                   : kSuccess;
}

int cuMemSetAccess(Address address, size_t byte_size, const Access* access, size_t) {
  const int protection = access->flags == gemmd::cuda::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
  return mprotect(Pointer(address), byte_size, protection) == 0 ? kSuccess : kInvalidValue;
}

int cuMemUnmap(Address address, size_t byte_size) {
  return mmap(Pointer(address), byte_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED
             ? kInvalidValue
             : kSuccess;
}

int cuMemAlloc_v2(Address* address, size_t byte_size) {
  const int fd = NewMemory(byte_size);
  if (fd < 0) return kOutOfMemory;
  void* const mapped = mmap(nullptr, byte_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) return kOutOfMemory;
  *address = static_cast<Address>(reinterpret_cast<uintptr_t>(mapped));
  const std::lock_guard<std::mutex> lock(State().mutex);
  State().ranges.emplace(*address, Range{byte_size, CurrentDevice(), fd, ++State().buffer_ids});
  return kSuccess;
}

int cuMemFree_v2(Address address) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  const auto found = State().ranges.find(address);
  if (found == State().ranges.end() || found->second.fd < 0) return kInvalidValue;
  close(found->second.fd);
  munmap(Pointer(address), found->second.byte_size);
  State().ranges.erase(found);
  return kSuccess;
}

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  if (CurrentDevice() < 0) return kInvalidContext;
  std::ifstream lines("/proc/meminfo");
  std::string word;
  uint64_t used_kibibytes = 0;
  while (lines >> word) {
    if (word == "Shmem:") lines >> used_kibibytes;
  }
  *total_bytes = kMemoryBytes;
  *free_bytes = kMemoryBytes - std::min(kMemoryBytes, used_kibibytes * 1024);
  return kSuccess;
}

int cuMemGetAddressRange_v2(Address* base, size_t* byte_size, Address address) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  const auto found = RangeOf(State(), address);
  if (found == State().ranges.end()) return kInvalidValue;
  *base = found->first;
  *byte_size = found->second.byte_size;
  return kSuccess;
}

int cuPointerGetAttribute(void* value, int attribute, Address address) {
  if (CurrentDevice() < 0) return kInvalidContext;
  const std::lock_guard<std::mutex> lock(State().mutex);
  const auto found = RangeOf(State(), address);
  if (found == State().ranges.end()) return kInvalidValue;
  if (attribute == kBufferId) {
    *static_cast<unsigned long long*>(value) = found->second.buffer_id;
  } else {
    *static_cast<int*>(value) = found->second.device;
  }
  return kSuccess;
}

int cuIpcGetMemHandle(IpcHandle* handle, Address address) {
  const std::lock_guard<std::mutex> lock(State().mutex);
  const auto found = State().ranges.find(address);
  if (found == State().ranges.end() || found->second.fd < 0) return kInvalidValue;
  struct stat status {};
  fstat(found->second.fd, &status);
  const gemmd::testing::FakeIpcHandle fake{getpid(), found->second.fd, status.st_ino};
  *handle = IpcHandle();
  std::memcpy(handle->bytes, &fake, sizeof(fake));
  return kSuccess;
}

int cuMemcpyHtoD_v2(Address destination, const void* source, size_t byte_size) {
  if (CurrentDevice() < 0) return kInvalidContext;
  std::memcpy(Pointer(destination), source, byte_size);
  return kSuccess;
}

int cuMemcpyDtoH_v2(void* destination, Address source, size_t byte_size) {
  if (CurrentDevice() < 0) return kInvalidContext;
  std::memcpy(destination, Pointer(source), byte_size);
  return kSuccess;
}

int cuMemsetD8_v2(Address destination, unsigned char value, size_t byte_size) {
  if (CurrentDevice() < 0) return kInvalidContext;
  std::memset(Pointer(destination), value, byte_size);
  return kSuccess;
}

}  // extern "C"
