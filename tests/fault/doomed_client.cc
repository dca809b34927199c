// SPDX-License-Identifier: Apache-2.0
// A client that gets to a given stage, says so, and waits to be killed.
//
// Usage: gemmd-doomed-client ADDRESS STAGE [NAME], with STAGE one of session, region, region_no_reply, shared_memory
// (NAME: of the object), tensor, half_written, half_content, reading, unary, stream, deaf_stream, half_message, pool,
// device, device_ipc, busy_pool, busy_device, busy_device_ipc (NAME: MiB of memory; busy: products in flight), exporter
// (NAME: file; prints the IpcMemory, in hex, of memory that holds it).
#include "client/client.h"
#include "client/problem.h"
#include "proto/broker.h"
#include "proto/message_socket.h"

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "doomed client: %s\n", value.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(value);
}

[[noreturn]] void WaitToBeKilled(const std::string& stage) {
  std::printf("at %s\n", stage.c_str());
  std::fflush(stdout);
  for (;;) pause();
}

// Speaks to the broker without the library: registers memory (or sends half a message) and never reads the reply.
void BareBroker(const std::string& address, bool whole) {
  const int socket_fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string path = address.substr(std::strlen("unix:")) + kBrokerSuffix;
  std::memcpy(name.sun_path, path.c_str(), path.size() + 1);
  if (connect(socket_fd, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) std::exit(1);
  BrokerRequest request;
  if (!SendStruct(socket_fd, request).ok()) std::exit(1);
  const UniqueFd memory = ValueOrDie(CreateSealedMemory(1 << 20));
  request.type = BrokerRequestType::kRegisterHost;
  request.byte_size = 1 << 20;
  request.writable = 1;
  const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(&request), sizeof(request));
  if (!SendMessage(socket_fd, whole ? bytes : bytes.subspan(0, sizeof(request) / 2), memory.get()).ok()) std::exit(1);
}

// A tensor that gemmd makes of a region's content, transposed and quantized, chunk after chunk: asked for, and not
// there.
[[noreturn]] void HalfContent(Client* client) {
  constexpr int64_t kRows = 8192;
  const HostRegion region = ValueOrDie(client->CreateHostRegion(kRows * kRows * sizeof(uint16_t)));
  v1::CreateTensorRequest request;
  request.set_transpose(true);
  request.set_quantize(v1::Quantize::BLOCK_128X128);
  v1::TensorRef& data = *request.mutable_data();
  data.mutable_slice()->set_region_id(region.id());
  data.set_dtype(v1::BF16);
  data.add_shape(kRows);
  data.add_shape(kRows);
  const auto stub = v1::Tensors::NewStub(client->channel());
  grpc::ClientContext context;
  client->session().Authorize(&context);
  v1::Tensor tensor;
  stub->async()->Create(&context, &request, &tensor, [](const grpc::Status& status) {
    std::fprintf(stderr, "doomed client: the tensor came too soon: %s\n", status.error_message().c_str());
  });
  // What it takes shows that the work has begun.
  while (ValueOrDie(client->GetInfo()).tensor_bytes() == 0) usleep(100);
  WaitToBeKilled("half_content");
}

// Sends requests whose results are larger than all buffers on the way, and reads none of them.
[[noreturn]] void DeafStream(Client* client, v1::RunRequest request) {
  const auto stub = v1::Gemm::NewStub(client->channel());
  grpc::ClientContext context;
  client->session().Authorize(&context);
  const auto stream = stub->Stream(&context);
  for (uint64_t id = 1; id <= 16; ++id) {
    request.set_request_id(id);
    if (!stream->Write(request)) std::exit(1);
  }
  WaitToBeKilled("deaf_stream");
}

// The first GPU that the daemon serves.
std::shared_ptr<Gpu> ServedGpu(Client* client) {
  const v1::ServerInfo info = ValueOrDie(client->GetInfo());
  for (const v1::WorkerInfo& worker : info.workers()) {
    if (absl::StartsWith(worker.device(), "GPU-")) return ValueOrDie(Gpu::Open(worker.device()));
  }
  std::fprintf(stderr, "doomed client: the daemon serves no GPU\n");
  std::exit(1);
}

// Products of the same operands into one place, one after another without an end.
void RunForever(Client* client, const v1::RunRequest& request) {
  client->RunAsync(request, {},
                   [client, request](const absl::StatusOr<v1::RunResponse>&) { RunForever(client, request); });
}

// `byte_size` bytes of memory on a device, and a product in them. `busy`: more of them follow, some of which are in
// flight when the client is killed; otherwise nothing is.
[[noreturn]] void OnDevice(Client* client, const std::string& kind, uint64_t byte_size, bool busy) {
  constexpr int kSlots = 4;
  const bool large = byte_size >= uint64_t{256} << 20;  // 100 us on an H100.
  const int64_t m = large ? 4096 : 64;
  const int64_t n = large ? 4096 : 128;
  const int64_t k = large ? 4096 : 128;
  const auto b = static_cast<uint64_t>(m * k);
  const uint64_t sfa = b + static_cast<uint64_t>(n * k);
  const uint64_t sfb = sfa + sizeof(float) * static_cast<uint64_t>(m * (k / 128));
  const uint64_t d_bytes = sizeof(uint16_t) * static_cast<uint64_t>(m * n);
  GpuAllocation legacy;
  DeviceRegion region;
  if (kind == "pool") {
    region = ValueOrDie(client->CreatePool(byte_size));
  } else {
    const std::shared_ptr<Gpu> gpu = ServedGpu(client);
    if (kind == "device") {
      region = ValueOrDie(client->CreateDeviceRegion(gpu, byte_size));
    } else {
      legacy = ValueOrDie(gpu->AllocateLegacy(byte_size));
      region = ValueOrDie(client->ShareDeviceMemory(gpu, legacy.data(), byte_size));
    }
  }
  // Memory that nobody has written need not be there, where the GPU is a fake or the CPU.
  if (!region.Write(0, std::vector<std::byte>(byte_size)).ok()) std::exit(1);
  for (uint64_t slot = 0; slot < kSlots; ++slot) {
    const DenseCall call{.a = region.View(0, DType::kE4m3, {m, k}),
                         .sfa = region.View(sfa, DType::kF32, {m, k / 128}),
                         .b = region.View(b, DType::kE4m3, {n, k}),
                         .sfb = region.View(sfb, DType::kF32, {n / 128, k / 128}),
                         .d = region.View(byte_size / 2 + slot * d_bytes, DType::kBf16, {m, n})};
    ValueOrDie(client->Dense(call));
    if (busy) RunForever(client, ToRequest(call));
  }
  WaitToBeKilled(kind);
}

[[noreturn]] void Exporter(Client* client, const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const std::shared_ptr<Gpu> gpu = ServedGpu(client);
  const GpuAllocation memory = ValueOrDie(gpu->AllocateLegacy(std::max<uint64_t>(content.size(), kGpuGranule)));
  if (!gpu->CopyToGpu(memory.data(), content.data(), content.size()).ok()) std::exit(1);
  const IpcMemory ipc = ValueOrDie(gpu->Describe(memory.data(), content.size()));
  const absl::string_view bytes(reinterpret_cast<const char*>(&ipc), sizeof(ipc));
  std::printf("%s\n", absl::BytesToHexString(bytes).c_str());
  std::fflush(stdout);
  for (;;) pause();
}

std::unique_ptr<Problem> LongProblem(Client* client, Transport transport) {
  const ProblemSpec spec{.op = Op::kDense, .m = 256, .n = 2048, .k = 2048};
  const auto weights = ValueOrDie(Weights::Create(client, spec, transport, 1));
  return ValueOrDie(Problem::Create(client, spec, transport, weights, 2));
}

void Run(const std::string& address, const std::string& stage, const std::string& name) {
  if (stage == "region_no_reply" || stage == "half_message") {
    BareBroker(address, stage == "region_no_reply");
    WaitToBeKilled(stage);
  }
  const std::unique_ptr<Client> client = ValueOrDie(Client::Connect(address));
  if (stage == "session") WaitToBeKilled(stage);
  if (stage == "region") {
    const HostRegion region = ValueOrDie(client->CreateHostRegion(8 << 20));
    const HostRegion second = ValueOrDie(client->CreateHostRegion(8 << 20, Access::kReadOnly));
    WaitToBeKilled(stage);
  }
  if (stage == "shared_memory") {
    const HostRegion region = ValueOrDie(client->CreateSharedMemory(name, 8 << 20));
    WaitToBeKilled(stage);
  }
  if (stage == "half_content") HalfContent(client.get());
  if (stage == "exporter") Exporter(client.get(), name);
  absl::string_view kind = stage;
  const bool busy = absl::ConsumePrefix(&kind, "busy_");
  if (kind == "pool" || kind == "device" || kind == "device_ipc") {
    uint64_t mebibytes = 0;
    if (!absl::SimpleAtoi(name, &mebibytes) || mebibytes == 0) std::exit(2);
    OnDevice(client.get(), std::string(kind), mebibytes << 20, busy);
  }
  if (stage == "tensor" || stage == "half_written" || stage == "reading") {
    const v1::Tensor tensor = ValueOrDie(client->CreateTensor({.dtype = DType::kU8, .shape = {32 << 20}}));
    if (stage == "tensor") WaitToBeKilled(stage);
    const auto stub = v1::Tensors::NewStub(client->channel());
    grpc::ClientContext context;
    client->session().Authorize(&context);
    if (stage == "half_written") {
      v1::WriteTensorResponse response;
      const auto writer = stub->Write(&context, &response);
      v1::WriteTensorRequest request;
      request.set_tensor_id(tensor.id());
      request.set_data(std::string(1 << 20, 'x'));
      for (int i = 0; i < 4; ++i) {
        request.set_offset(static_cast<uint64_t>(i) << 20);
        writer->Write(request);
      }
      WaitToBeKilled(stage);
    }
    v1::ReadTensorRequest request;
    request.set_tensor_id(tensor.id());
    const auto reader = stub->Read(&context, request);
    v1::ReadTensorResponse response;
    reader->Read(&response);
    WaitToBeKilled(stage);
  }
  const std::unique_ptr<Problem> problem = LongProblem(client.get(), Transport::kHost);
  v1::RunRequest request = problem->request();
  *request.mutable_dense()->mutable_d() = v1::TensorRef();
  request.mutable_dense()->mutable_d()->set_dtype(v1::BF16);
  if (stage == "deaf_stream") DeafStream(client.get(), request);
  const std::unique_ptr<RunStream> stream = client->OpenStream();
  for (int i = 0; i < 8; ++i) {
    const RunCallback ignore = [](const absl::StatusOr<v1::RunResponse>&) {};
    if (stage == "unary") {
      client->RunAsync(request, {}, ignore);
    } else if (!stream->Submit(request, ignore).ok()) {
      std::exit(1);
    }
  }
  WaitToBeKilled(stage);
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: %s ADDRESS STAGE [NAME]\n", argv[0]);
    return 2;
  }
  gemmd::Run(argv[1], argv[2], argc == 4 ? argv[3] : "");
}
