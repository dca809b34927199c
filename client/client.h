// SPDX-License-Identifier: Apache-2.0
// The gemmd client library: one Client is one connection and one session. Start at quickstart.cc.
//
//   auto client = gemmd::Client::Connect("unix:/run/gemmd/gemmd.sock");
//   auto region = (*client)->CreateHostRegion(bytes);
//   auto response = (*client)->Dense({.a = region->View(...), ..., .d = region->View(...)});
//
// Every error is an absl::Status with the daemon's code and message; the daemon checks requests, the client does not.
#ifndef GEMMD_CLIENT_CLIENT_H_
#define GEMMD_CLIENT_CLIENT_H_

#include "client/client_session.h"
#include "client/device_region.h"
#include "client/gpu.h"
#include "client/gpu_order.h"
#include "client/host_region.h"
#include "client/operations.h"
#include "client/run_stream.h"
#include "gemmd/v1/admin.grpc.pb.h"
#include "gemmd/v1/gemm.grpc.pb.h"
#include "gemmd/v1/tensors.grpc.pb.h"
#include "proto/job.h"
#include "proto/trace_context.h"

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace gemmd {

struct ConnectOptions {
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration call_timeout = absl::Minutes(2);  // Of each call that does not say otherwise.
  std::string client_name = "gemmd-client";        // For the daemon's logs and lists.
  bool open_session = true;                        // False: inline operands only, and no session to pay for.
  bool tls = false;                                // For host:port; the two files below are optional.
  std::string tls_root_certificates = {};          // PEM. Empty: the system's.
  std::string tls_certificate = {};                // PEM, with tls_key: this client's own, for mTLS.
  std::string tls_key = {};                        // PEM.
  std::string token = {};                          // Bearer token, as the daemon's --token_file has it.
  // For several daemons behind one address ("dns:///name:port", "ipv4:host:port,host:port"): calls go to those that are
  // healthy in turn (see kRoundRobinServiceConfig). A session is one daemon's, so this takes open_session = false.
  bool round_robin = false;
  // How long a thread that waits for the result of one operation polls for it before it sleeps (unary_wait.h). Zero:
  // never. Not set: 500 us where this process may use 8 cores or more, so that a product of 200 us ends without a late
  // wake.
  std::optional<absl::Duration> spin = {};
  // Calls that name memory on a GPU wait, before they are sent, for all that this process has started on that GPU:
  // operands are then what its kernels make of them. False: whoever makes the calls sees to that, as a process must
  // whose kernels do not end.
  bool synchronize = true;
};

struct CallOptions {
  absl::Duration timeout = absl::ZeroDuration();  // Zero: ConnectOptions::call_timeout.
  uint32_t priority = 0;                          // 0 to 3, 3 is most urgent.
  // The trace that the call belongs to, for example ParseTraceparent of what the caller's own caller sent; none: the
  // daemon begins one. Requests of a stream carry theirs in RunRequest::traceparent (FormatTraceparent).
  std::optional<TraceContext> trace = {};
};

struct TensorSpec {
  DType dtype = DType::kNone;
  std::vector<int64_t> shape = {};
  std::string name = {};
  bool shared = false;  // Visible by name to all sessions of this user; outlives this session.
};

// What a tensor holds from the start. Exactly one of `file` and `data`.
struct TensorContent {
  std::string file = {};         // .safetensors, on the daemon's machine: relative to one of its --tensor_dirs.
  std::string file_tensor = {};  // Which of the file's tensors; may be empty if there is only one.
  TensorView data = {};          // Contiguous: inline, in a region, or resident.
  bool transpose = false;        // The content is [K,N] or [G,K,N]; the tensor [N,K] or [G,N,K].
  QuantizeBlock quantize = QuantizeBlock::kUnset;  // To e4m3; the reply's sf_id is the tensor of the scale factors.
};

// How a channel with round_robin chooses and retries, as gRPC's service config. A call that ended with UNAVAILABLE (no
// connection, the daemon drains, its worker died) or CANCELLED (not by the caller: gRPC's answer to a call that comes
// while a server closes its connections, which no handler ever saw) is sent again, up to 5 times in all; without a
// session its operands and results travel with it, so that doing it twice does no harm. Other clients may use the same
// text.
extern const char kRoundRobinServiceConfig[];

// Bytes in one message of WriteTensor: large enough to amortize a message, small enough to pipeline.
inline constexpr size_t kTensorChunkBytes = size_t{2} << 20;

// Thread-safe. Must outlive its streams and its asynchronous calls; regions may outlive it and keep the session open.
class Client {
 public:
  // `address`: "unix:/path" (session at the broker, "/path.broker"; memory can be shared) or "host:port" (session over
  // gRPC; inline operands and resident tensors). Errors: UNAVAILABLE, DEADLINE_EXCEEDED, UNAUTHENTICATED,
  // INVALID_ARGUMENT (round_robin with a session).
  static absl::StatusOr<std::unique_ptr<Client>> Connect(absl::string_view address, ConnectOptions options = {});

  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  // Waits for the callbacks of asynchronous calls, so it may not be called by one.
  ~Client();

  // One operation: waits until the result is in place. Inline results are in the response's `d` and `sf`.
  absl::StatusOr<v1::RunResponse> Dense(const DenseCall& call, CallOptions options = {});
  absl::StatusOr<v1::RunResponse> MGroupedContiguous(const MGroupedContiguousCall& call, CallOptions options = {});
  absl::StatusOr<v1::RunResponse> MGroupedMasked(const MGroupedMaskedCall& call, CallOptions options = {});
  absl::StatusOr<v1::RunResponse> KGrouped(const KGroupedCall& call, CallOptions options = {});
  absl::StatusOr<v1::RunResponse> Quantize(const QuantizeCall& call, CallOptions options = {});

  // The same for a request made by ToRequest.
  absl::StatusOr<v1::RunResponse> Run(const v1::RunRequest& request, CallOptions options = {});
  // Returns once the call is sent, without waiting for its end; `callback` comes on a thread of gRPC and must not
  // block. (On this thread, with INTERNAL, if waiting for the GPU of its operands failed.)
  void RunAsync(v1::RunRequest request, CallOptions options, RunCallback callback);
  // Pipelined operations.
  std::unique_ptr<RunStream> OpenStream(StreamOptions options = {});

  // Shares `byte_size` bytes of new, zeroed memory. Errors: FAILED_PRECONDITION (no broker), RESOURCE_EXHAUSTED.
  absl::StatusOr<HostRegion> CreateHostRegion(uint64_t byte_size, Access access = Access::kReadWrite);
  // The same as POSIX shared memory `name` ("/name", created here, unlinked when the region goes).
  // Errors: ALREADY_EXISTS, and those of Sessions.RegisterSharedMemory.
  absl::StatusOr<HostRegion> CreateSharedMemory(const std::string& name, uint64_t byte_size,
                                                Access access = Access::kReadWrite);

  // Memory on a device, shared without copies (device_region.h). All need a session at the broker, on the daemon's
  // machine; errors of all: FAILED_PRECONDITION (no broker), INVALID_ARGUMENT (a GPU that gemmd does not serve),
  // RESOURCE_EXHAUSTED, and those of Gpu.
  //
  // Memory of gemmd, zeroed: `device` is the UUID of a GPU, "cpu", or empty for the one with most room. Nothing of it
  // is lost or left behind when this process dies: prefer it where you choose who allocates.
  absl::StatusOr<DeviceRegion> CreatePool(uint64_t byte_size, absl::string_view device = "");
  // New, zeroed memory of this process on `gpu`, passed as a descriptor; works from container to container.
  absl::StatusOr<DeviceRegion> CreateDeviceRegion(const std::shared_ptr<Gpu>& gpu, uint64_t byte_size,
                                                  Access access = Access::kReadWrite);
  // Memory that cudaMalloc gave this process, all or part of an allocation of 2 MiB or more; `address` at a multiple of
  // 16 bytes. The allocation must outlive the region. FAILED_PRECONDITION where legacy CUDA IPC cannot work: the
  // message says why, and what does.
  absl::StatusOr<DeviceRegion> ShareDeviceMemory(const std::shared_ptr<Gpu>& gpu, void* address, uint64_t byte_size,
                                                 Access access = Access::kReadWrite);

  // Resident tensors. Errors: those of the Tensors service.
  absl::StatusOr<v1::Tensor> CreateTensor(const TensorSpec& spec);
  // With content: dtype and shape of the spec may be left out.
  absl::StatusOr<v1::Tensor> CreateTensor(const TensorSpec& spec, const TensorContent& content);
  absl::Status WriteTensor(uint64_t id, absl::Span<const std::byte> bytes, uint64_t offset = 0);
  absl::Status WriteTensor(uint64_t id, const HostRegion& region, uint64_t region_offset, uint64_t byte_size);
  absl::StatusOr<std::string> ReadTensor(uint64_t id);
  absl::StatusOr<std::vector<v1::Tensor>> ListTensors();
  absl::StatusOr<v1::Tensor> GetTensor(uint64_t id);
  absl::StatusOr<v1::Tensor> GetTensor(const std::string& name);
  absl::Status DeleteTensor(uint64_t id);

  // What an operator asks.
  absl::StatusOr<v1::ServerInfo> GetInfo();
  absl::StatusOr<v1::WarmUpResponse> WarmUp(absl::Span<const v1::WarmUpShape> shapes);
  absl::Status Drain();
  absl::StatusOr<std::string> SetLogLevel(const std::string& level);  // Gives the previous level.
  absl::StatusOr<v1::GetTraceResponse> GetTrace();

  // For services that have no call here.
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  const ClientSession& session() const { return *session_; }

 private:
  Client(std::shared_ptr<grpc::Channel> channel, std::shared_ptr<ClientSession> session, ConnectOptions options);

  std::function<void()> CloserOf(uint64_t region_id) const;
  void AwaitBeforeCalls(uint64_t region_id, std::shared_ptr<const Gpu> gpu) const;
  void Prepare(const CallOptions& options, grpc::ClientContext* context) const;
  absl::StatusOr<v1::Tensor> CreateTensor(const v1::CreateTensorRequest& request);
  absl::StatusOr<v1::Tensor> GetTensor(const v1::GetTensorRequest& request);

  const ConnectOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::shared_ptr<ClientSession> session_;
  const std::shared_ptr<GpuOrder> order_ = std::make_shared<GpuOrder>();
  const std::unique_ptr<v1::Gemm::Stub> gemm_;
  const std::unique_ptr<v1::Tensors::Stub> tensors_;
  const std::unique_ptr<v1::Admin::Stub> admin_;
  absl::Mutex mutex_;
  int64_t pending_calls_ ABSL_GUARDED_BY(mutex_) = 0;  // Asynchronous ones that hold the channel.
};

// A channel with this library's settings, for programs that talk to other services of the daemon (health).
// Errors: INVALID_ARGUMENT (address).
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(absl::string_view address, const ConnectOptions& options);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_CLIENT_H_
