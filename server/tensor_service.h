// SPDX-License-Identifier: Apache-2.0
// gemmd.v1.Tensors: resident tensors over gRPC. Bytes move by copy jobs between the staging arena (or a client's
// region) and the tensor. Reactions run on gRPC's threads and the pool's threads and never block; staging a chunk is
// one memcpy.
#ifndef GEMMD_SERVER_TENSOR_SERVICE_H_
#define GEMMD_SERVER_TENSOR_SERVICE_H_

#include "gemmd/v1/tensors.grpc.pb.h"
#include "server/authenticator.h"
#include "server/drain_gate.h"
#include "server/file_thread.h"
#include "server/region_registry.h"
#include "server/staging_arena.h"
#include "server/tensor_files.h"
#include "server/tensor_registry.h"
#include "server/worker_pool.h"

#include <cstdint>

namespace gemmd {

// Bytes in one message of Read: well below gRPC's usual 4 MiB limit of a client, and copied into the message in some
// 50 us, which a thread of the worker pool can spare.
inline constexpr uint64_t kReadChunkBytes = 512 << 10;

struct TransferCall;

class TensorService : public v1::Tensors::CallbackService {
 public:
  struct Parts {
    TensorRegistry& tensors;
    RegionRegistry& regions;
    StagingArena& arena;
    WorkerPool& pool;
    const Authenticator& authenticator;
    DrainGate& gate;
    const TensorFiles& files;
    FileThread& file_thread;
  };

  // The parts must outlive the service, and the service its server.
  explicit TensorService(const Parts& parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* Create(grpc::CallbackServerContext* context, const v1::CreateTensorRequest* request,
                                   v1::Tensor* response) override;
  grpc::ServerReadReactor<v1::WriteTensorRequest>* Write(grpc::CallbackServerContext* context,
                                                         v1::WriteTensorResponse* response) override;
  grpc::ServerUnaryReactor* WriteFromSlice(grpc::CallbackServerContext* context,
                                           const v1::WriteFromSliceRequest* request,
                                           v1::WriteTensorResponse* response) override;
  grpc::ServerWriteReactor<v1::ReadTensorResponse>* Read(grpc::CallbackServerContext* context,
                                                         const v1::ReadTensorRequest* request) override;
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context, const v1::ListTensorsRequest* request,
                                 v1::ListTensorsResponse* response) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const v1::GetTensorRequest* request,
                                v1::Tensor* response) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context, const v1::DeleteTensorRequest* request,
                                   v1::DeleteTensorResponse* response) override;

 private:
  // Session, place in the drain gate and deadline of a call that moves bytes.
  absl::StatusOr<TransferCall> Admit(const grpc::CallbackServerContext& context) const;

  const Parts parts_;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_SERVICE_H_
