// SPDX-License-Identifier: Apache-2.0
#include "client/client.h"

#include "client/grpc_status.h"
#include "client/run_stream_reactor.h"
#include "client/unary_wait.h"
#include "proto/broker.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <chrono>
#include <utility>

namespace gemmd {
namespace {

// A request with inline operands must be kept whole to be sent again; the daemon takes none longer by default.
constexpr int kRetryBufferBytes = 64 << 20;
// A daemon that was restarted is found again soon.
constexpr int kMinReconnectMillis = 100;
constexpr int kMaxReconnectMillis = 2'000;

constexpr char kUnixPrefix[] = "unix:";

std::chrono::system_clock::time_point DeadlineAfter(absl::Duration timeout) {
  return absl::ToChronoTime(absl::Now() + timeout);
}

// "/path" of "unix:/path" and "unix:///path"; empty for other addresses.
std::string UnixPath(absl::string_view address) {
  if (!absl::ConsumePrefix(&address, kUnixPrefix)) return "";
  absl::ConsumePrefix(&address, "//");
  return std::string(address);
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const ConnectOptions& options) {
  if (!options.tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  ssl.pem_root_certs = options.tls_root_certificates;
  ssl.pem_cert_chain = options.tls_certificate;
  ssl.pem_private_key = options.tls_key;
  return grpc::SslCredentials(ssl);
}

absl::StatusOr<std::shared_ptr<ClientSession>> OpenSession(const std::string& unix_path,
                                                           const std::shared_ptr<grpc::Channel>& channel,
                                                           const ConnectOptions& options) {
  const SessionOptions session{options.client_name, options.token, options.connect_timeout};
  if (!options.open_session) return ClientSession::Anonymous(session);
  if (unix_path.empty()) return ClientSession::OpenOnChannel(channel, session);
  return ClientSession::OpenAtBroker(absl::StrCat(unix_path, kBrokerSuffix), session);
}

// A channel tells the reason, a failed handshake for example, only to a call that does not wait for it.
std::string WhyNotConnected(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_deadline(DeadlineAfter(absl::Seconds(1)));
  v1::ServerInfo info;
  const grpc::Status status = v1::Admin::NewStub(channel)->GetInfo(&context, v1::GetInfoRequest(), &info);
  return status.ok() ? "connected too late" : status.error_message();
}

v1::CreateTensorRequest ToRequest(const TensorSpec& spec) {
  v1::CreateTensorRequest request;
  request.set_dtype(ToProto(spec.dtype));
  request.mutable_shape()->Assign(spec.shape.begin(), spec.shape.end());
  request.set_name(spec.name);
  request.set_shared(spec.shared);
  return request;
}

// What an asynchronous call needs until its callback.
struct PendingCall {
  grpc::ClientContext context;
  v1::RunRequest request;
  v1::RunResponse response;
  RunCallback callback;
};

void SetRoundRobin(grpc::ChannelArguments* arguments) {
  arguments->SetServiceConfigJSON(kRoundRobinServiceConfig);
  arguments->SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kRetryBufferBytes);
  arguments->SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMinReconnectMillis);
  arguments->SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kMaxReconnectMillis);
  arguments->SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMillis);
}

}  // namespace

const char kRoundRobinServiceConfig[] = R"({
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "gemmd.v1.Gemm"},
  "methodConfig": [{
    "name": [{"service": "gemmd.v1.Gemm", "method": "Run"}],
    "retryPolicy": {
      "maxAttempts": 5, "initialBackoff": "0.02s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
    }
  }]
})";

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(absl::string_view address, const ConnectOptions& options) {
  if (address.empty()) return absl::InvalidArgumentError("address: expected unix:/path or host:port, got nothing");
  grpc::ChannelArguments arguments;
  // Results may be larger than the 4 MiB that gRPC takes by default; the daemon bounds what it sends.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // Each Client has a connection of its own, so that a load generator can open several.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (options.round_robin) SetRoundRobin(&arguments);
  // gRPC sends "localhost" as the authority of a Unix socket only if told.
  if (!UnixPath(address).empty()) arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  // There is no policy to retry by, and being ready for one takes gRPC some 4 us a call. Over TCP it stays: a request
  // that never reached a server is sent again by it, for example when that one closes an old connection.
  if (!UnixPath(address).empty()) arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return grpc::CreateCustomChannel(std::string(address), Credentials(options), arguments);
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(absl::string_view address, ConnectOptions options) {
  if (options.round_robin && options.open_session) {
    return absl::InvalidArgumentError("round_robin: expected open_session = false, since a session is one daemon's");
  }
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = MakeChannel(address, options);
  if (!channel.ok()) return channel.status();
  if (!(*channel)->WaitForConnected(DeadlineAfter(options.connect_timeout))) {
    return absl::UnavailableError(absl::StrCat("no gemmd at ", address, ": not connected within ",
                                               absl::FormatDuration(options.connect_timeout), ": ",
                                               WhyNotConnected(*channel)));
  }
  absl::StatusOr<std::shared_ptr<ClientSession>> session = OpenSession(UnixPath(address), *channel, options);
  if (!session.ok()) return session.status();
  return std::unique_ptr<Client>(new Client(*std::move(channel), *std::move(session), std::move(options)));
}

Client::Client(std::shared_ptr<grpc::Channel> channel, std::shared_ptr<ClientSession> session, ConnectOptions options)
    : options_(std::move(options)),
      channel_(std::move(channel)),
      session_(std::move(session)),
      gemm_(v1::Gemm::NewStub(channel_)),
      tensors_(v1::Tensors::NewStub(channel_)),
      admin_(v1::Admin::NewStub(channel_)) {}

void Client::Prepare(const CallOptions& options, grpc::ClientContext* context) const {
  const absl::Duration timeout = options.timeout == absl::ZeroDuration() ? options_.call_timeout : options.timeout;
  context->set_deadline(DeadlineAfter(timeout));
  session_->Authorize(context);
  if (options.trace) context->AddMetadata(kTraceparentMetadata, FormatTraceparent(*options.trace));
}

absl::StatusOr<v1::RunResponse> Client::Run(const v1::RunRequest& request, CallOptions options) {
  if (absl::Status status = order_->Await(request); !status.ok()) return status;
  grpc::ClientContext context;
  Prepare(options, &context);
  v1::RunResponse response;
  grpc::Status status;
  grpc::CompletionQueue queue;
  const auto call = gemm_->AsyncRun(&context, request, &queue);
  call->Finish(&response, &status, nullptr);
  const bool answered = AwaitCall(queue, options_.spin);
  if (!status.ok()) return FromGrpc(status);
  if (!answered) return absl::InternalError("response: expected a gemmd.v1.RunResponse, got something else");
  return response;
}

// gRPC's callback threads end with the last channel of the process, and one of them that frees that channel waits for
// itself to end: a call frees its part of the channel while this one still has its own.
Client::~Client() {
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int64_t* pending) { return *pending == 0; }, &pending_calls_));
}

void Client::RunAsync(v1::RunRequest request, CallOptions options, RunCallback callback) {
  if (absl::Status status = order_->Await(request); !status.ok()) {
    callback(std::move(status));
    return;
  }
  {
    const absl::MutexLock lock(&mutex_);
    ++pending_calls_;
  }
  auto* call = new PendingCall;  // Deleted in the completion below, which gRPC calls exactly once.
  call->request = std::move(request);
  call->callback = std::move(callback);
  if (options.priority != 0) call->request.set_priority(options.priority);
  Prepare(options, &call->context);
  gemm_->async()->Run(&call->context, &call->request, &call->response, [this, call](const grpc::Status& status) {
    if (status.ok()) {
      call->callback(std::move(call->response));
    } else {
      call->callback(FromGrpc(status));
    }
    delete call;
    const absl::MutexLock lock(&mutex_);
    --pending_calls_;
  });
}

std::unique_ptr<RunStream> Client::OpenStream(StreamOptions options) {
  auto reactor = std::make_unique<RunStream::Reactor>(gemm_.get(), session_, options);
  return std::unique_ptr<RunStream>(new RunStream(std::move(reactor), order_));
}

absl::StatusOr<v1::RunResponse> Client::Dense(const DenseCall& call, CallOptions options) {
  v1::RunRequest request = ToRequest(call);
  request.set_priority(options.priority);
  return Run(request, options);
}

absl::StatusOr<v1::RunResponse> Client::MGroupedContiguous(const MGroupedContiguousCall& call, CallOptions options) {
  v1::RunRequest request = ToRequest(call);
  request.set_priority(options.priority);
  return Run(request, options);
}

absl::StatusOr<v1::RunResponse> Client::MGroupedMasked(const MGroupedMaskedCall& call, CallOptions options) {
  v1::RunRequest request = ToRequest(call);
  request.set_priority(options.priority);
  return Run(request, options);
}

absl::StatusOr<v1::RunResponse> Client::KGrouped(const KGroupedCall& call, CallOptions options) {
  v1::RunRequest request = ToRequest(call);
  request.set_priority(options.priority);
  return Run(request, options);
}

absl::StatusOr<v1::RunResponse> Client::Quantize(const QuantizeCall& call, CallOptions options) {
  v1::RunRequest request = ToRequest(call);
  request.set_priority(options.priority);
  return Run(request, options);
}

absl::StatusOr<v1::Tensor> Client::CreateTensor(const TensorSpec& spec) { return CreateTensor(ToRequest(spec)); }

absl::StatusOr<v1::Tensor> Client::CreateTensor(const TensorSpec& spec, const TensorContent& content) {
  v1::CreateTensorRequest request = ToRequest(spec);
  if (!content.file.empty() || !content.file_tensor.empty()) {
    request.mutable_file()->set_path(content.file);
    request.mutable_file()->set_tensor(content.file_tensor);
  } else {
    ToProto(content.data, request.mutable_data());
  }
  request.set_transpose(content.transpose);
  request.set_quantize(static_cast<v1::Quantize::Block>(content.quantize));
  return CreateTensor(request);
}

absl::StatusOr<v1::Tensor> Client::CreateTensor(const v1::CreateTensorRequest& request) {
  if (absl::Status status = order_->Await(request); !status.ok()) return status;
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::Tensor tensor;
  const grpc::Status status = tensors_->Create(&context, request, &tensor);
  if (!status.ok()) return FromGrpc(status);
  return tensor;
}

absl::Status Client::WriteTensor(uint64_t id, absl::Span<const std::byte> bytes, uint64_t offset) {
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::WriteTensorResponse response;
  const auto writer = tensors_->Write(&context, &response);
  for (size_t done = 0; done < bytes.size(); done += kTensorChunkBytes) {
    const absl::Span<const std::byte> chunk = bytes.subspan(done, kTensorChunkBytes);
    v1::WriteTensorRequest request;
    request.set_tensor_id(id);
    request.set_offset(offset + done);
    request.set_data(chunk.data(), chunk.size());
    if (!writer->Write(request)) break;  // Finish says why.
  }
  writer->WritesDone();
  return FromGrpc(writer->Finish());
}

absl::Status Client::WriteTensor(uint64_t id, const HostRegion& region, uint64_t region_offset, uint64_t byte_size) {
  v1::WriteFromSliceRequest request;
  request.set_tensor_id(id);
  request.mutable_slice()->set_region_id(region.id());
  request.mutable_slice()->set_offset(region_offset);
  request.set_byte_size(byte_size);
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::WriteTensorResponse response;
  return FromGrpc(tensors_->WriteFromSlice(&context, request, &response));
}

absl::StatusOr<std::string> Client::ReadTensor(uint64_t id) {
  v1::ReadTensorRequest request;
  request.set_tensor_id(id);
  grpc::ClientContext context;
  Prepare({}, &context);
  const auto reader = tensors_->Read(&context, request);
  std::string bytes;
  v1::ReadTensorResponse chunk;
  while (reader->Read(&chunk)) bytes.append(chunk.data());
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpc(status);
  return bytes;
}

absl::StatusOr<std::vector<v1::Tensor>> Client::ListTensors() {
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::ListTensorsResponse response;
  const grpc::Status status = tensors_->List(&context, v1::ListTensorsRequest(), &response);
  if (!status.ok()) return FromGrpc(status);
  return std::vector<v1::Tensor>(response.tensors().begin(), response.tensors().end());
}

absl::StatusOr<v1::Tensor> Client::GetTensor(uint64_t id) {
  v1::GetTensorRequest request;
  request.set_id(id);
  return GetTensor(request);
}

absl::StatusOr<v1::Tensor> Client::GetTensor(const std::string& name) {
  v1::GetTensorRequest request;
  request.set_name(name);
  return GetTensor(request);
}

absl::StatusOr<v1::Tensor> Client::GetTensor(const v1::GetTensorRequest& request) {
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::Tensor tensor;
  const grpc::Status status = tensors_->Get(&context, request, &tensor);
  if (!status.ok()) return FromGrpc(status);
  return tensor;
}

absl::Status Client::DeleteTensor(uint64_t id) {
  v1::DeleteTensorRequest request;
  request.set_id(id);
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::DeleteTensorResponse response;
  return FromGrpc(tensors_->Delete(&context, request, &response));
}

absl::StatusOr<v1::ServerInfo> Client::GetInfo() {
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::ServerInfo info;
  const grpc::Status status = admin_->GetInfo(&context, v1::GetInfoRequest(), &info);
  if (!status.ok()) return FromGrpc(status);
  return info;
}

absl::StatusOr<v1::WarmUpResponse> Client::WarmUp(absl::Span<const v1::WarmUpShape> shapes) {
  v1::WarmUpRequest request;
  request.mutable_shapes()->Assign(shapes.begin(), shapes.end());
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::WarmUpResponse response;
  const grpc::Status status = admin_->WarmUp(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

absl::Status Client::Drain() {
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::DrainResponse response;
  return FromGrpc(admin_->Drain(&context, v1::DrainRequest(), &response));
}

absl::StatusOr<std::string> Client::SetLogLevel(const std::string& level) {
  v1::SetLogLevelRequest request;
  request.set_level(level);
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::SetLogLevelResponse response;
  const grpc::Status status = admin_->SetLogLevel(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response.previous_level();
}

absl::StatusOr<v1::GetTraceResponse> Client::GetTrace() {
  grpc::ClientContext context;
  Prepare({}, &context);
  v1::GetTraceResponse response;
  const grpc::Status status = admin_->GetTrace(&context, v1::GetTraceRequest(), &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

}  // namespace gemmd
