// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_transfer.h"

#include "server/convert.h"
#include "server/copy_runner.h"
#include "server/tensor_creation.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace gemmd {
namespace {

absl::Status CancelledCall() { return absl::CancelledError("the call was cancelled"); }

// A chunk of a Write on its way: its bytes are in the arena, its job runs or waits for the one before.
struct StagedChunk {
  ArenaLease lease;
  uint64_t offset = 0;  // In the tensor.
};

// Copies one chunk while the next one is received and staged; chunks are applied in order. Jobs start after StartRead,
// as the last act of a function: a job that fails at once ends the call, and with it the reactor.
class WriteReactor : public grpc::ServerReadReactor<v1::WriteTensorRequest> {
 public:
  WriteReactor(TransferCall call, v1::WriteTensorResponse* response)
      : call_(std::move(call)), runner_(call_.parts.pool, call_.session), response_(response) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    absl::StatusOr<StagedChunk> chunk = absl::OutOfRangeError("end of stream");
    if (ok) chunk = Stage();
    bool start = false;
    bool finish = false;
    {
      absl::MutexLock lock(&mutex_);
      if (!ok) {
        input_ended_ = true;
      } else if (!chunk.ok()) {
        if (result_.ok()) result_ = chunk.status();
        input_ended_ = true;
      } else if (job_running_) {
        staged_ = *std::move(chunk);
      } else if (!finished_ && result_.ok()) {
        running_ = *std::move(chunk);
        start = job_running_ = true;
      }
      finish = !start && ReadyToFinish();
    }
    if (start) StartJob();
    if (finish) FinishCall();
  }

  void OnCancel() override {
    bool finish = false;
    {
      absl::MutexLock lock(&mutex_);
      if (result_.ok()) result_ = CancelledCall();
      input_ended_ = true;
      finish = ReadyToFinish();
    }
    if (finish) {
      FinishCall();
    } else {
      runner_.Cancel();
    }
  }

  void OnDone() override { delete this; }

 private:
  // Once true, the caller must call FinishCall.
  bool ReadyToFinish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_ || job_running_ || !input_ended_) return false;
    finished_ = true;
    return true;
  }

  void FinishCall() {
    absl::Status status;
    uint64_t written = 0;
    {
      absl::MutexLock lock(&mutex_);
      status = result_;
      written = bytes_written_;
    }
    if (!status.ok()) {
      status =
          absl::Status(status.code(), absl::StrCat(status.message(), " (", written, " bytes were written before)"));
    }
    response_->set_bytes_written(written);
    Finish(ToGrpcStatus(status));
  }

  absl::Status ResolveTensor() {
    if (tensor_.pin != nullptr) {
      if (request_.tensor_id() == 0 || request_.tensor_id() == tensor_.region_id) return absl::OkStatus();
      return absl::InvalidArgumentError("tensor_id: expected that of the first message, or 0");
    }
    absl::StatusOr<TensorView> view = call_.parts.tensors.FindWritable(*call_.session, request_.tensor_id());
    if (!view.ok()) return view.status();
    tensor_ = *std::move(view);
    return absl::OkStatus();
  }

  // Only one read is under way at a time, so this needs no lock.
  absl::StatusOr<StagedChunk> Stage() {
    if (absl::Status status = ResolveTensor(); !status.ok()) return status;
    const std::string& data = request_.data();
    absl::Status status = CheckWindow("chunk", request_.offset(), data.size(), tensor_.byte_size);
    if (!status.ok()) return status;
    absl::StatusOr<ArenaLease> lease = call_.parts.arena.Allocate(data.size());
    if (!lease.ok()) return lease.status();
    std::memcpy(lease->data(), data.data(), data.size());
    return StagedChunk{*std::move(lease), request_.offset()};
  }

  // Requires: job_running_ was just set, and no read is under way.
  void StartJob() {
    CopySpec spec;
    {
      absl::MutexLock lock(&mutex_);
      spec.from = {running_.lease.region_id(), running_.lease.offset()};
      spec.to = {tensor_.region_id, running_.offset};
      spec.byte_size = running_.lease.byte_size();
    }
    spec.session = call_.session->id();
    spec.deadline_ns = call_.deadline_ns;
    StartRead(&request_);
    if (spec.byte_size == 0) {
      OnJobDone(absl::OkStatus());
      return;
    }
    runner_.Start(spec, tensor_.worker, [this](const absl::Status& status) { OnJobDone(status); });
  }

  void OnJobDone(const absl::Status& status) {
    bool start = false;
    bool finish = false;
    {
      absl::MutexLock lock(&mutex_);
      if (status.ok()) {
        bytes_written_ += running_.lease.byte_size();
        TensorRegistry::AddBytesWritten(tensor_, running_.lease.byte_size());
      } else {
        // The first failure in the order of the stream: a later chunk may have failed to stage already.
        result_ = status;
        input_ended_ = true;
      }
      running_ = {};
      job_running_ = false;
      // A chunk that was staged before the stream ended or failed is still to be applied.
      if (status.ok() && staged_.has_value()) {
        running_ = *std::exchange(staged_, std::nullopt);
        start = job_running_ = true;
      }
      finish = !start && ReadyToFinish();
    }
    if (start) StartJob();
    if (finish) FinishCall();
  }

  const TransferCall call_;
  CopyRunner runner_;
  v1::WriteTensorResponse* const response_;
  v1::WriteTensorRequest request_;
  TensorView tensor_;  // Set at the first message.

  absl::Mutex mutex_;
  StagedChunk running_ ABSL_GUARDED_BY(mutex_);
  std::optional<StagedChunk> staged_ ABSL_GUARDED_BY(mutex_);
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_written_ ABSL_GUARDED_BY(mutex_) = 0;
  bool job_running_ ABSL_GUARDED_BY(mutex_) = false;
  bool input_ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

class CreateReactor : public grpc::ServerUnaryReactor {
 public:
  CreateReactor(TransferCall call, v1::Tensor* response) : call_(std::move(call)), response_(response) {}

  void Start(const v1::CreateTensorRequest& request) {
    const TensorService::Parts& parts = call_.parts;
    creation_ = TensorCreation::Start(
        TensorMakers{parts.tensors, parts.regions, parts.arena, parts.pool, parts.files, parts.file_thread},
        {call_.session, call_.deadline_ns, /*everybody=*/false}, request,
        [this](const absl::StatusOr<TensorRecord>& record) {
          absl::Status status = record.status();
          if (record.ok() && cancelled_.load()) {
            // Nobody would learn the id.
            (void)call_.parts.tensors.Delete(*call_.session, record->id);
            status = CancelledCall();
          } else if (record.ok()) {
            Fill(*record, call_.parts.pool.Snapshot(), *response_);
          }
          Finish(ToGrpcStatus(status));
        });
  }

  // Not before Start has returned, since gRPC does not know the reactor until then.
  void OnCancel() override {
    cancelled_.store(true);
    creation_->Cancel();
  }
  void OnDone() override { delete this; }

 private:
  const TransferCall call_;
  v1::Tensor* const response_;
  std::atomic<bool> cancelled_{false};
  std::shared_ptr<TensorCreation> creation_;
};

class SliceWriteReactor : public grpc::ServerUnaryReactor {
 public:
  SliceWriteReactor(TransferCall call, v1::WriteTensorResponse* response)
      : call_(std::move(call)), runner_(call_.parts.pool, call_.session), response_(response) {}

  void Start(const v1::WriteFromSliceRequest& request) {
    const absl::Status status = Resolve(request);
    if (!status.ok() || request.byte_size() == 0) {
      Finish(ToGrpcStatus(status));
      return;
    }
    const CopySpec spec{.from = {request.slice().region_id(), request.slice().offset()},
                        .to = {tensor_.region_id, request.offset()},
                        .byte_size = request.byte_size(),
                        .session = call_.session->id(),
                        .deadline_ns = call_.deadline_ns};
    runner_.Start(spec, tensor_.worker, [this, byte_size = spec.byte_size](const absl::Status& copied) {
      if (copied.ok()) {
        TensorRegistry::AddBytesWritten(tensor_, byte_size);
        response_->set_bytes_written(byte_size);
      }
      Finish(ToGrpcStatus(copied));
    });
  }

  void OnCancel() override { runner_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  absl::Status Resolve(const v1::WriteFromSliceRequest& request) {
    absl::StatusOr<TensorView> tensor = call_.parts.tensors.FindWritable(*call_.session, request.tensor_id());
    if (!tensor.ok()) return tensor.status();
    tensor_ = *std::move(tensor);
    const absl::StatusOr<RegionView> region = call_.parts.regions.Find(*call_.session, request.slice().region_id());
    if (!region.ok()) return region.status();
    absl::Status status = CheckWindow("slice", request.slice().offset(), request.byte_size(), region->byte_size);
    if (!status.ok()) return status;
    if (!Contains(region->workers, tensor_.worker)) {
      return absl::FailedPreconditionError("slice: expected memory on the device of the tensor");
    }
    return CheckWindow("tensor", request.offset(), request.byte_size(), tensor_.byte_size);
  }

  const TransferCall call_;
  CopyRunner runner_;
  v1::WriteTensorResponse* const response_;
  TensorView tensor_;
};

// Sends one chunk while the next one is copied into the arena. A chunk is moved into the message when the previous
// message is on its way, so a client that reads slowly holds one lease and one message.
class ReadReactor : public grpc::ServerWriteReactor<v1::ReadTensorResponse> {
 public:
  explicit ReadReactor(TransferCall call) : call_(std::move(call)), runner_(call_.parts.pool, call_.session) {}

  void Start(const v1::ReadTensorRequest& request) {
    const absl::Status status = Resolve(request);
    if (!status.ok() || next_ == end_) {
      Finish(ToGrpcStatus(status));
      return;
    }
    {
      absl::MutexLock lock(&mutex_);
      job_running_ = true;
    }
    StartJob();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) Fail(CancelledCall());
    Advance(Event::kWriteDone);
  }

  void OnCancel() override {
    Fail(CancelledCall());
    runner_.Cancel();
    Advance(Event::kCancelled);
  }

  void OnDone() override { delete this; }

 private:
  enum class Event { kJobDone, kWriteDone, kCancelled };

  absl::Status Resolve(const v1::ReadTensorRequest& request) {
    absl::StatusOr<TensorView> tensor = call_.parts.tensors.Find(*call_.session, request.tensor_id());
    if (!tensor.ok()) return tensor.status();
    tensor_ = *std::move(tensor);
    absl::Status status = CheckWindow("tensor", request.offset(), request.byte_size(), tensor_.byte_size);
    if (!status.ok()) return status;
    next_ = request.offset();
    end_ = request.byte_size() == 0 ? tensor_.byte_size : next_ + request.byte_size();
    return absl::OkStatus();
  }

  void Fail(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    if (result_.ok()) result_ = status;
  }

  // Requires: job_running_ was just set, so that nobody else touches lease_ and next_.
  void StartJob() {
    const uint64_t byte_size = std::min(kReadChunkBytes, end_ - next_);
    absl::StatusOr<ArenaLease> lease = call_.parts.arena.Allocate(byte_size);
    if (!lease.ok()) {
      Fail(lease.status());
      Advance(Event::kJobDone);
      return;
    }
    lease_ = *std::move(lease);
    const CopySpec spec{.from = {tensor_.region_id, next_},
                        .to = {lease_.region_id(), lease_.offset()},
                        .byte_size = byte_size,
                        .session = call_.session->id(),
                        .deadline_ns = call_.deadline_ns};
    runner_.Start(spec, tensor_.worker, [this](const absl::Status& status) {
      if (!status.ok()) Fail(status);
      Advance(Event::kJobDone);
    });
  }

  // What comes next after an event. The last act is to start a job or to finish, since either may end this object.
  void Advance(Event event) {
    bool write = false;
    bool start = false;
    bool finish = false;
    absl::Status result;
    {
      absl::MutexLock lock(&mutex_);
      if (event == Event::kJobDone) {
        job_running_ = false;
        chunk_ready_ = result_.ok();
      } else if (event == Event::kWriteDone) {
        write_running_ = false;
      }
      if (finished_) return;
      write = result_.ok() && chunk_ready_ && !write_running_;
      if (write) {
        chunk_ready_ = false;
        write_running_ = true;
        start = job_running_ = next_ + lease_.byte_size() < end_;
      }
      finish = !write_running_ && !job_running_;
      finished_ = finish;
      result = result_;
    }
    if (write) Send();
    if (start) StartJob();
    if (finish) Finish(ToGrpcStatus(result));
  }

  // Requires: write_running_ was just set.
  void Send() {
    response_.set_offset(next_);
    response_.set_data(lease_.data(), lease_.byte_size());
    next_ += lease_.byte_size();
    lease_ = ArenaLease();
    StartWrite(&response_);
  }

  const TransferCall call_;
  CopyRunner runner_;
  TensorView tensor_;
  v1::ReadTensorResponse response_;
  ArenaLease lease_;   // Of the chunk that is copied or ready.
  uint64_t next_ = 0;  // Offset of that chunk in the tensor.
  uint64_t end_ = 0;

  absl::Mutex mutex_;
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
  bool job_running_ ABSL_GUARDED_BY(mutex_) = false;
  bool chunk_ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool write_running_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

absl::Status CheckWindow(absl::string_view noun, uint64_t offset, uint64_t byte_size, uint64_t limit) {
  if (offset <= limit && byte_size <= limit - offset) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat(noun, ": expected bytes inside [0, ", limit, "), got ", byte_size, " bytes at offset ", offset));
}

grpc::ServerUnaryReactor* StartCreateCall(TransferCall call, const v1::CreateTensorRequest& request,
                                          v1::Tensor* response) {
  auto* reactor = new CreateReactor(std::move(call), response);
  reactor->Start(request);
  return reactor;
}

grpc::ServerReadReactor<v1::WriteTensorRequest>* StartWriteCall(TransferCall call, v1::WriteTensorResponse* response) {
  return new WriteReactor(std::move(call), response);
}

grpc::ServerUnaryReactor* StartSliceWriteCall(TransferCall call, const v1::WriteFromSliceRequest& request,
                                              v1::WriteTensorResponse* response) {
  auto* reactor = new SliceWriteReactor(std::move(call), response);
  reactor->Start(request);
  return reactor;
}

grpc::ServerWriteReactor<v1::ReadTensorResponse>* StartReadCall(TransferCall call,
                                                                const v1::ReadTensorRequest& request) {
  auto* reactor = new ReadReactor(std::move(call));
  reactor->Start(request);
  return reactor;
}

}  // namespace gemmd
