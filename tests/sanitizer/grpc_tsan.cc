// SPDX-License-Identifier: Apache-2.0
// Makes gRPC's completion queues visible to ThreadSanitizer, as absl_sync_tsan.cc does for Abseil's locks: what a
// thread did before it started a batch of operations happens before the completion of that batch.
//
// In the callback API the tag of a batch is a functor that gRPC calls at completion; this file puts its own function in
// its place and calls the real one after it has told the sanitizer. In the blocking API the tag comes back from the
// queue.
#include <grpc/grpc.h>

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <link.h>
#include <mutex>
#include <unordered_map>

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

namespace {

using Run = void (*)(grpc_completion_queue_functor*, int);

struct Functors {
  std::mutex mutex;
  std::unordered_map<grpc_completion_queue_functor*, Run> real;
};

// Never destroyed: gRPC's threads may outlive static objects.
Functors& PendingFunctors() {
  static Functors& functors = *new Functors;
  return functors;
}

void RunAfterAcquire(grpc_completion_queue_functor* functor, int ok) {
  Functors& functors = PendingFunctors();
  Run real;
  {
    const std::lock_guard<std::mutex> lock(functors.mutex);
    const auto found = functors.real.find(functor);
    real = found->second;
    functors.real.erase(found);
  }
  functor->functor_run = real;
  __tsan_acquire(functor);
  real(functor, ok);
}

struct CodeSearch {
  uintptr_t address;
  bool found;
};

int LookForCode(dl_phdr_info* object, size_t, void* argument) {
  CodeSearch& search = *static_cast<CodeSearch*>(argument);
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    const uintptr_t begin = object->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X) != 0 && search.address >= begin &&
        search.address < begin + segment.p_memsz) {
      search.found = true;
      return 1;
    }
  }
  return 0;
}

// A functor begins with the address of a function; the tags of the blocking API begin with that of a table of them.
bool IsFunctor(const void* tag) {
  CodeSearch search{*static_cast<const uintptr_t*>(tag), false};
  dl_iterate_phdr(&LookForCode, &search);
  return search.found;
}

// `tag` is about to be given to gRPC, which gives it back on another thread.
void HandOver(void* tag) {
  if (tag == nullptr) {
    return;
  }
  __tsan_release(tag);
  if (!IsFunctor(tag)) {
    return;
  }
  auto* const functor = static_cast<grpc_completion_queue_functor*>(tag);
  Functors& functors = PendingFunctors();
  const std::lock_guard<std::mutex> lock(functors.mutex);
  if (functor->functor_run != &RunAfterAcquire) {
    functors.real[functor] = functor->functor_run;
    functor->functor_run = &RunAfterAcquire;
  }
}

template <typename Function>
Function* Real(const char* name) {
  void* const address = dlsym(RTLD_NEXT, name);
  if (address == nullptr) {
    std::fprintf(stderr, "grpc_tsan: no symbol %s\n", name);
    std::abort();
  }
  return reinterpret_cast<Function*>(address);
}

}  // namespace

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag, void* reserved) {
  static const auto real = Real<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  HandOver(tag);
  return real(call, ops, count, tag, reserved);
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline, void* reserved) {
  static const auto real = Real<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = real(queue, tag, deadline, reserved);
  __tsan_acquire(tag);
  return event;
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static const auto real = Real<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = real(queue, deadline, reserved);
  // A queue that shuts down leaves the tag unset.
  if (event.type == GRPC_OP_COMPLETE && event.tag != nullptr) {
    __tsan_acquire(event.tag);
  }
  return event;
}

}  // extern "C"
