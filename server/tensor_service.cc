// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_service.h"

#include "server/convert.h"
#include "server/tensor_transfer.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

using Workers = std::vector<WorkerSnapshot>;

namespace {

grpc::ServerUnaryReactor* Finished(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// A streaming call that is refused before its first message.
template <typename Reactor>
class RefusedStream : public Reactor {
 public:
  explicit RefusedStream(const absl::Status& status) { this->Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

TensorSpec SpecOf(const v1::CreateTensorRequest& request) {
  TensorSpec spec;
  // Proto enums are open; a number that does not fit must not wrap around to a known type.
  spec.dtype = v1::DType_IsValid(request.dtype()) ? static_cast<DType>(request.dtype()) : DType::kNone;
  spec.shape.assign(request.shape().begin(), request.shape().end());
  spec.name = request.name();
  spec.shared = request.shared();
  return spec;
}

absl::Status CheckNoContent(const v1::CreateTensorRequest& request) {
  if (request.transpose()) return absl::InvalidArgumentError("transpose: expected content to transpose, got none");
  if (request.quantize() == v1::Quantize::BLOCK_UNSPECIFIED) return absl::OkStatus();
  return absl::InvalidArgumentError("quantize: expected content to quantize, got none");
}

}  // namespace

void Fill(const TensorRecord& record, const Workers& workers, v1::Tensor& tensor) {
  tensor.set_id(record.id);
  tensor.set_name(record.name);
  tensor.set_shared(record.shared);
  tensor.set_dtype(static_cast<v1::DType>(record.dtype));
  tensor.mutable_shape()->Assign(record.shape.begin(), record.shape.end());
  tensor.set_byte_size(record.byte_size);
  tensor.set_bytes_written(record.bytes_written);
  tensor.set_references(record.references);
  const auto worker = static_cast<size_t>(record.worker);
  if (record.worker >= 0 && worker < workers.size()) tensor.set_device(workers[worker].traits.device);
  tensor.set_sf_id(record.sf_id);
  tensor.set_read_only(record.read_only);
}

absl::StatusOr<TransferCall> TensorService::Admit(const grpc::CallbackServerContext& context) const {
  absl::StatusOr<std::shared_ptr<Session>> session = parts_.authenticator.RequireSession(context);
  if (!session.ok()) return session.status();
  absl::StatusOr<DrainGate::Pass> pass = parts_.gate.Enter();
  if (!pass.ok()) return pass.status();
  return TransferCall{parts_, *std::move(session), *std::move(pass), MonotonicDeadline(context.deadline())};
}

grpc::ServerUnaryReactor* TensorService::Create(grpc::CallbackServerContext* context,
                                                const v1::CreateTensorRequest* request, v1::Tensor* response) {
  if (request->content_case() != v1::CreateTensorRequest::CONTENT_NOT_SET) {
    absl::StatusOr<TransferCall> call = Admit(*context);
    if (!call.ok()) return Finished(context, call.status());
    return StartCreateCall(*std::move(call), *request, response);
  }
  if (absl::Status status = CheckNoContent(*request); !status.ok()) return Finished(context, status);
  const absl::StatusOr<std::shared_ptr<Session>> session = parts_.authenticator.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  parts_.tensors.CreateTensor(
      *session, SpecOf(*request),
      [this, context, reactor, response, session = *session](const absl::StatusOr<TensorRecord>& record) {
        absl::Status status = record.status();
        if (record.ok() && context->IsCancelled()) {
          // Nobody would learn the id.
          (void)parts_.tensors.Delete(*session, record->id);
          status = absl::CancelledError("the call was cancelled");
        } else if (record.ok()) {
          Fill(*record, parts_.pool.Snapshot(), *response);
        }
        reactor->Finish(ToGrpcStatus(status));
      });
  return reactor;
}

grpc::ServerReadReactor<v1::WriteTensorRequest>* TensorService::Write(grpc::CallbackServerContext* context,
                                                                      v1::WriteTensorResponse* response) {
  absl::StatusOr<TransferCall> call = Admit(*context);
  if (!call.ok()) return new RefusedStream<grpc::ServerReadReactor<v1::WriteTensorRequest>>(call.status());
  return StartWriteCall(*std::move(call), response);
}

grpc::ServerUnaryReactor* TensorService::WriteFromSlice(grpc::CallbackServerContext* context,
                                                        const v1::WriteFromSliceRequest* request,
                                                        v1::WriteTensorResponse* response) {
  absl::StatusOr<TransferCall> call = Admit(*context);
  if (!call.ok()) return Finished(context, call.status());
  return StartSliceWriteCall(*std::move(call), *request, response);
}

grpc::ServerWriteReactor<v1::ReadTensorResponse>* TensorService::Read(grpc::CallbackServerContext* context,
                                                                      const v1::ReadTensorRequest* request) {
  absl::StatusOr<TransferCall> call = Admit(*context);
  if (!call.ok()) return new RefusedStream<grpc::ServerWriteReactor<v1::ReadTensorResponse>>(call.status());
  return StartReadCall(*std::move(call), *request);
}

grpc::ServerUnaryReactor* TensorService::List(grpc::CallbackServerContext* context, const v1::ListTensorsRequest*,
                                              v1::ListTensorsResponse* response) {
  const absl::StatusOr<std::shared_ptr<Session>> session = parts_.authenticator.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  const Workers workers = parts_.pool.Snapshot();
  for (const TensorRecord& record : parts_.tensors.List(**session)) Fill(record, workers, *response->add_tensors());
  return Finished(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* TensorService::Get(grpc::CallbackServerContext* context, const v1::GetTensorRequest* request,
                                             v1::Tensor* response) {
  const absl::StatusOr<std::shared_ptr<Session>> session = parts_.authenticator.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  absl::StatusOr<TensorRecord> record = absl::InvalidArgumentError("key: expected id or name, got neither");
  if (request->has_id()) record = parts_.tensors.Get(**session, request->id());
  if (request->has_name()) record = parts_.tensors.GetByName(**session, request->name());
  if (record.ok()) Fill(*record, parts_.pool.Snapshot(), *response);
  return Finished(context, record.status());
}

grpc::ServerUnaryReactor* TensorService::Delete(grpc::CallbackServerContext* context,
                                                const v1::DeleteTensorRequest* request, v1::DeleteTensorResponse*) {
  const absl::StatusOr<std::shared_ptr<Session>> session = parts_.authenticator.RequireSession(*context);
  if (!session.ok()) return Finished(context, session.status());
  return Finished(context, parts_.tensors.Delete(**session, request->id()));
}

}  // namespace gemmd
