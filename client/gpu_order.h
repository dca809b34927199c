// SPDX-License-Identifier: Apache-2.0
// That a call comes after what this process has started on a GPU. gemmd knows nothing of a client's streams, so the
// client waits for the GPUs of the memory that a call names before it sends it.
#ifndef GEMMD_CLIENT_GPU_ORDER_H_
#define GEMMD_CLIENT_GPU_ORDER_H_

#include "client/gpu.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include <google/protobuf/message.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace gemmd {

// The regions of a client that are on a GPU. Owned by Client and by all that may outlive it. Thread-safe.
class GpuOrder {
 public:
  GpuOrder() = default;
  GpuOrder(const GpuOrder&) = delete;
  GpuOrder& operator=(const GpuOrder&) = delete;

  void Add(uint64_t region_id, std::shared_ptr<const Gpu> gpu);
  void Remove(uint64_t region_id);

  // Waits for all that this process has started on the GPUs of the regions that `request` names. A client without such
  // regions does not look into it. Errors: those of Gpu::Synchronize.
  absl::Status Await(const google::protobuf::Message& request) const;

 private:
  std::atomic<int64_t> regions_{0};
  mutable absl::Mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<const Gpu>> gpus_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_GPU_ORDER_H_
