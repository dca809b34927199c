// SPDX-License-Identifier: Apache-2.0
// The worker's end of the control socket: says hello, then serves the front end's requests on one thread until the
// socket ends. Mapping and allocating happen on that thread, so that the loop never waits for them, and making kernels
// ready on another, so that no region waits for a compile.
#ifndef GEMMD_GPU_CONTROL_H_
#define GEMMD_GPU_CONTROL_H_

#include "gpu/device.h"
#include "gpu/region_table.h"
#include "gpu/worker.h"
#include "proto/control.h"
#include "proto/message_socket.h"
#include "proto/unique_fd.h"
#include "proto/worker_counters.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace gemmd {

class Control {
 public:
  // Everything passed by reference must outlive this object. Errors: RESOURCE_EXHAUSTED (no descriptors).
  static absl::StatusOr<std::unique_ptr<Control>> Create(UniqueFd socket, Device& device, RegionTable& regions,
                                                         Worker& worker, const WorkerCounters& counters);
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;
  // Waits for the kernel that is being made ready.
  ~Control();

  // Tells the front end that the device is there, and gives it the counters. Once, before Serve. Errors: UNAVAILABLE
  // (the front end is gone).
  absl::Status SendHello();

  // Serves requests. OK when the front end closed its end or Stop was called; INVALID_ARGUMENT if it broke the
  // protocol.
  absl::Status Serve();

  // Makes Serve return. Any thread.
  void Stop();

 private:
  // Replies that other threads have for the socket: a region is gone when the last job on it is, wherever that ends.
  // Shared with their callbacks, which may outlive the socket.
  class Outbox {
   public:
    explicit Outbox(UniqueFd event) : event_(std::move(event)) {}
    int event() const { return event_.get(); }
    void Post(const ControlReply& reply);
    void Stop();
    std::vector<ControlReply> TakeReplies();
    bool stopped() const;

   private:
    void Ring();

    const UniqueFd event_;  // An eventfd: readable while there is news.
    mutable absl::Mutex mutex_;
    std::vector<ControlReply> replies_ ABSL_GUARDED_BY(mutex_);
    bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  };

  class Preparer;

  Control(UniqueFd socket, UniqueFd event, Device& device, RegionTable& regions, Worker& worker,
          const WorkerCounters& counters);

  absl::Status SendReplies();
  absl::Status ServeOne(ReceivedMessage message);
  static absl::Status SetLogLevel(uint8_t level);
  absl::Status AttachRing(UniqueFd fd);
  absl::Status MapRegion(const ControlRequest& request, UniqueFd fd);
  absl::StatusOr<UniqueFd> Allocate(const ControlRequest& request);
  absl::Status CloseRegion(const ControlRequest& request);

  const UniqueFd socket_;
  const std::shared_ptr<Outbox> outbox_;
  Device& device_;
  RegionTable& regions_;
  Worker& worker_;
  const WorkerCounters& counters_;
  const std::unique_ptr<Preparer> preparer_;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CONTROL_H_
