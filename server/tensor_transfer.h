// SPDX-License-Identifier: Apache-2.0
// The calls of the Tensors service that move bytes or make tensors from content, one reactor each. Made by
// TensorService; each deletes itself when its call is over, which is never before its last copy job is done, so the
// memory that a job names stays.
#ifndef GEMMD_SERVER_TENSOR_TRANSFER_H_
#define GEMMD_SERVER_TENSOR_TRANSFER_H_

#include "gemmd/v1/tensors.grpc.pb.h"
#include "server/drain_gate.h"
#include "server/session.h"
#include "server/tensor_registry.h"
#include "server/tensor_service.h"
#include "server/worker_pool.h"

#include "absl/status/status.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace gemmd {

// OUT_OF_RANGE unless [offset, offset + byte_size) lies inside `limit` bytes of what `noun` names.
absl::Status CheckWindow(absl::string_view noun, uint64_t offset, uint64_t byte_size, uint64_t limit);

// What a reply shows of a tensor. `workers`: as of WorkerPool::Snapshot.
void Fill(const TensorRecord& record, const std::vector<WorkerSnapshot>& workers, v1::Tensor& tensor);

struct TransferCall {
  TensorService::Parts parts;
  std::shared_ptr<Session> session;
  DrainGate::Pass pass;      // A drain waits for the call.
  uint64_t deadline_ns = 0;  // As JobDescriptor::deadline_ns.
};

// Create with content.
grpc::ServerUnaryReactor* StartCreateCall(TransferCall call, const v1::CreateTensorRequest& request,
                                          v1::Tensor* response);
grpc::ServerReadReactor<v1::WriteTensorRequest>* StartWriteCall(TransferCall call, v1::WriteTensorResponse* response);
grpc::ServerUnaryReactor* StartSliceWriteCall(TransferCall call, const v1::WriteFromSliceRequest& request,
                                              v1::WriteTensorResponse* response);
grpc::ServerWriteReactor<v1::ReadTensorResponse>* StartReadCall(TransferCall call,
                                                                const v1::ReadTensorRequest& request);

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_TRANSFER_H_
