// SPDX-License-Identifier: Apache-2.0
// One tensor on its way from a file, a slice, another tensor or inline bytes: finds the content, reserves the tensor
// and the one of its scale factors, brings the content in chunk by chunk by jobs of the worker, and publishes both at
// the end. Nobody sees a tensor that is half there. Used by the Tensors service and for the manifest.
#ifndef GEMMD_SERVER_TENSOR_CREATION_H_
#define GEMMD_SERVER_TENSOR_CREATION_H_

#include "gemmd/v1/tensors.pb.h"
#include "server/copy_runner.h"
#include "server/file_thread.h"
#include "server/region_registry.h"
#include "server/session.h"
#include "server/staging_arena.h"
#include "server/tensor_files.h"
#include "server/tensor_plan.h"
#include "server/tensor_registry.h"
#include "server/worker_pool.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace gemmd {

// What creations work with. All outlive them.
struct TensorMakers {
  TensorRegistry& tensors;
  RegionRegistry& regions;
  StagingArena& arena;
  WorkerPool& pool;
  const TensorFiles& files;
  FileThread& file_thread;
};

// Lives as long as it has something to do. Its steps come one after another, on the caller's thread, the file thread
// and threads of the pool; Cancel may come from any thread at any time.
class TensorCreation : public std::enable_shared_from_this<TensorCreation> {
 public:
  using Done = std::function<void(absl::StatusOr<TensorRecord>)>;

  struct Call {
    std::shared_ptr<Session> session;
    uint64_t deadline_ns = 0;  // As JobDescriptor::deadline_ns.
    bool everybody = false;    // As TensorSpec::everybody.
  };

  // Begins. `done` is called exactly once, on this thread or another, and must not block. The request is read before
  // Start returns. Errors: those of Tensors.Create.
  static std::shared_ptr<TensorCreation> Start(const TensorMakers& makers, Call call,
                                               const v1::CreateTensorRequest& request, Done done);

  // Stops at the next chunk with CANCELLED.
  void Cancel();

 private:
  TensorCreation(const TensorMakers& makers, Call call, Done done);

  void Begin(const v1::CreateTensorRequest& request);
  absl::StatusOr<ContentLayout> ResolveData(const v1::TensorRef& data);
  absl::StatusOr<ContentLayout> ResolveFile(const v1::TensorFile& file);
  // Each begins one step and returns; the step's end calls the next one.
  void Reserve(const TensorWish& wish, const absl::StatusOr<ContentLayout>& content);
  void ReserveScales();
  void Bring(const ContentChunk& chunk);
  void ReadChunk(const ContentChunk& chunk);
  void RunJobs(const ContentChunk& chunk);
  void RunNextJob(const ContentChunk& chunk);
  void Finish(const absl::Status& status);

  const TensorMakers makers_;
  const Call call_;
  const Done done_;
  CopyRunner runner_;
  std::atomic<bool> cancelled_{false};

  // Of the content: a file, or a place in a region that something below keeps.
  bool from_file_ = false;
  TensorFile file_;
  uint64_t file_offset_ = 0;
  RegionOffset place_;
  TensorView source_;        // Pins a tensor.
  int worker_ = kAnyWorker;  // Where the content can be reached, if not everywhere.
  ArenaLease inline_;        // Keeps inline bytes.
  ArenaLease chunk_;         // Keeps a chunk of a file.
  ArenaLease scratch_;

  TensorPlan plan_;
  TensorView tensor_;
  TensorView scales_;
  std::vector<JobDescriptor> jobs_;  // Of the chunk, last first.
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_CREATION_H_
