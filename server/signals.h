// SPDX-License-Identifier: Apache-2.0
// SIGTERM and SIGINT, taken by a thread of their own: the first asks for a drain, the second ends the process at once.
// Used by main.
#ifndef GEMMD_SERVER_SIGNALS_H_
#define GEMMD_SERVER_SIGNALS_H_

#include "proto/unique_fd.h"

#include <functional>
#include <thread>

namespace gemmd {

class SignalWatcher {
 public:
  // Blocks the signals for this thread and all that it starts: make it before any other thread.
  explicit SignalWatcher(std::function<void()> on_first);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Run();

  const std::function<void()> on_first_;
  UniqueFd signals_;
  UniqueFd stop_;
  std::thread thread_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_SIGNALS_H_
