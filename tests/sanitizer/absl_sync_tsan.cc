// SPDX-License-Identifier: Apache-2.0
// Makes the locks of the distribution's Abseil visible to ThreadSanitizer. That library (gRPC uses it too) is not
// instrumented, so the sanitizer would take everything that an absl::Mutex protects for a race. This shared library is
// linked before Abseil in the tsan build only; each function here calls Abseil's own and tells the sanitizer what it
// did.
//
// Reads are not watched inside Abseil's calls: a thread that unlocks evaluates the conditions of the threads that wait,
// with the lock held, after it has told that it releases it.
#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string>

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

#define GEMMD_STRING_OF(x) #x
#define GEMMD_STRING(x) GEMMD_STRING_OF(x)
constexpr char kNamespace[] = GEMMD_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);

// Abseil's own definition of a function of its inline namespace, by the rest of its mangled name.
template <typename Function>
Function* Real(const char* prefix, const char* name) {
  const std::string symbol = prefix + std::to_string(sizeof(kNamespace) - 1) + kNamespace + name;
  void* const address = dlsym(RTLD_NEXT, symbol.c_str());
  if (address == nullptr) {
    std::fprintf(stderr, "absl_sync_tsan: no symbol %s\n", symbol.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(address);
}

class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
  IgnoreReads(const IgnoreReads&) = delete;
  IgnoreReads& operator=(const IgnoreReads&) = delete;
};

// Calls `function`, which gives up `lock` if kReleases and has it afterwards if kAcquires.
template <bool kReleases, bool kAcquires, typename Function, typename... Arguments>
auto Call(Function* function, const void* lock, Arguments... arguments) {
  void* const address = const_cast<void*>(lock);
  if (kReleases) {
    __tsan_release(address);
  }
  struct AcquireAtExit {
    void* address;
    ~AcquireAtExit() {
      if (kAcquires) {
        __tsan_acquire(address);
      }
    }
  };
  const AcquireAtExit acquire{address};
  const IgnoreReads ignore;
  return function(arguments...);
}

constexpr char kPlain[] = "_ZN4absl";
constexpr char kConst[] = "_ZNK4absl";

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto real = Real<void(Mutex*)>(kPlain, "5Mutex4LockEv");
  Call<false, true>(real, this, this);
}

void Mutex::Unlock() {
  static const auto real = Real<void(Mutex*)>(kPlain, "5Mutex6UnlockEv");
  Call<true, false>(real, this, this);
}

bool Mutex::TryLock() {
  static const auto real = Real<bool(Mutex*)>(kPlain, "5Mutex7TryLockEv");
  return Call<false, true>(real, this, this);
}

void Mutex::ReaderLock() {
  static const auto real = Real<void(Mutex*)>(kPlain, "5Mutex10ReaderLockEv");
  Call<false, true>(real, this, this);
}

void Mutex::ReaderUnlock() {
  static const auto real = Real<void(Mutex*)>(kPlain, "5Mutex12ReaderUnlockEv");
  Call<true, false>(real, this, this);
}

bool Mutex::ReaderTryLock() {
  static const auto real = Real<bool(Mutex*)>(kPlain, "5Mutex13ReaderTryLockEv");
  return Call<false, true>(real, this, this);
}

void Mutex::Await(const Condition& condition) {
  static const auto real = Real<void(Mutex*, const Condition*)>(kPlain, "5Mutex5AwaitERKNS0_9ConditionE");
  Call<true, true>(real, this, this, &condition);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Real<bool(Mutex*, const Condition*, Duration)>(
      kPlain, "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  return Call<true, true>(real, this, this, &condition, timeout);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const auto real =
      Real<bool(Mutex*, const Condition*, Time)>(kPlain, "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  return Call<true, true>(real, this, this, &condition, deadline);
}

void Mutex::LockWhen(const Condition& condition) {
  static const auto real = Real<void(Mutex*, const Condition*)>(kPlain, "5Mutex8LockWhenERKNS0_9ConditionE");
  Call<false, true>(real, this, this, &condition);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Real<bool(Mutex*, const Condition*, Duration)>(
      kPlain, "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  return Call<false, true>(real, this, this, &condition, timeout);
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  static const auto real =
      Real<bool(Mutex*, const Condition*, Time)>(kPlain, "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  return Call<false, true>(real, this, this, &condition, deadline);
}

void Mutex::ReaderLockWhen(const Condition& condition) {
  static const auto real = Real<void(Mutex*, const Condition*)>(kPlain, "5Mutex14ReaderLockWhenERKNS0_9ConditionE");
  Call<false, true>(real, this, this, &condition);
}

void CondVar::Wait(Mutex* mutex) {
  static const auto real = Real<void(CondVar*, Mutex*)>(kPlain, "7CondVar4WaitEPNS0_5MutexE");
  Call<true, true>(real, mutex, this, mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto real =
      Real<bool(CondVar*, Mutex*, Duration)>(kPlain, "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  return Call<true, true>(real, mutex, this, mutex, timeout);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto real =
      Real<bool(CondVar*, Mutex*, Time)>(kPlain, "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  return Call<true, true>(real, mutex, this, mutex, deadline);
}

// HasBeenNotified() reads the flag in our own, instrumented code. The release is on the flag and on the notification.
void Notification::Notify() {
  static const auto real = Real<void(Notification*)>(kPlain, "12Notification6NotifyEv");
  __tsan_release(&notified_yet_);
  Call<true, false>(real, this, this);
}

void Notification::WaitForNotification() const {
  static const auto real = Real<void(const Notification*)>(kConst, "12Notification19WaitForNotificationEv");
  Call<false, true>(real, this, this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static const auto real = Real<bool(const Notification*, Duration)>(
      kConst, "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  return Call<false, true>(real, this, this, timeout);
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  static const auto real =
      Real<bool(const Notification*, Time)>(kConst, "12Notification31WaitForNotificationWithDeadlineENS0_4TimeE");
  return Call<false, true>(real, this, this, deadline);
}

ABSL_NAMESPACE_END
}  // namespace absl
