// SPDX-License-Identifier: Apache-2.0
// The one thread of the front end that may wait for a disk. Reactions hand it what reads files; a long file comes in
// tasks of one chunk each, so that others get their turn in between.
#ifndef GEMMD_SERVER_FILE_THREAD_H_
#define GEMMD_SERVER_FILE_THREAD_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include <deque>
#include <functional>
#include <thread>

namespace gemmd {

// Thread-safe.
class FileThread {
 public:
  FileThread();
  FileThread(const FileThread&) = delete;
  FileThread& operator=(const FileThread&) = delete;
  // Runs what was posted.
  ~FileThread();

  // Runs the task on the thread, after those before it. Not for posting from the destructor on.
  void Post(std::function<void()> task);

 private:
  void Run();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_FILE_THREAD_H_
