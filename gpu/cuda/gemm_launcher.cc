// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/gemm_launcher.h"

#include "gpu/cuda_status.h"
#include "gpu/jit/kernel_source.h"

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

#include <algorithm>
#include <utility>

namespace gemmd {
namespace {

constexpr size_t kConfigLimit = 65536;  // Remembered shapes; beyond that all are forgotten.

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

Grouping GroupingOf(const GemmCall& call) {
  if (!call.segment_a.empty()) return Grouping::kDepth;
  return call.clip_rows || call.segments.size() > 1 ? Grouping::kRows : Grouping::kDense;
}

GemmShape ShapeOf(const GemmCall& call) {
  GemmShape shape{call.scaling, call.output, GroupingOf(call), call.n(), 0, {}};
  for (const Segment& segment : call.segments) {
    shape.k = std::max<int64_t>(shape.k, segment.k);
    shape.rows.push_back(segment.row_end - segment.row_begin);
  }
  return shape;
}

TensorMapSpec InputSpec(const GemmTraits& traits, const MatrixView& matrix, int box_rows) {
  TensorMapSpec spec;
  spec.dtype = traits.scaled() ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  spec.element_bytes = traits.scaled() ? 1 : 2;
  spec.matrix = matrix;
  spec.box_rows = box_rows;
  spec.box_columns = traits.block_k();
  return spec;
}

TensorMapSpec OutputSpec(const GemmTraits& traits, const MatrixView& matrix) {
  TensorMapSpec spec;
  spec.dtype =
      traits.output == KernelOutput::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  spec.element_bytes = traits.output_bytes();
  spec.matrix = matrix;
  spec.box_rows = traits.box_rows();
  spec.box_columns = traits.box_columns();
  const int row_bytes = traits.box_columns() * traits.output_bytes();
  spec.swizzle = row_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                 : row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                   : CU_TENSOR_MAP_SWIZZLE_32B;
  return spec;
}

absl::Status CheckHopper(int device) {
  cudaDeviceProp properties;
  if (absl::Status status = CudaStatus(cudaGetDeviceProperties(&properties, device), "reading device properties");
      !status.ok()) {
    return status;
  }
  if (IsHopper(properties)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("a Hopper GPU (compute capability 9.0) is needed; ",
                                                    properties.name, " has ", properties.major, ".", properties.minor));
}

}  // namespace

GemmLauncher::GemmLauncher(const Driver& driver, int sms) : driver_(driver), sms_(sms), maps_(driver_) {}

GemmLauncher::~GemmLauncher() {
  cache_.reset();  // Its threads end first.
  absl::MutexLock lock(&mutex_);
  for (const auto& [traits, kernel] : loaded_) cudaLibraryUnload(kernel.library);
  for (const auto& [kind, kernel] : quantize_) cudaLibraryUnload(kernel.library);
}

absl::StatusOr<std::unique_ptr<GemmLauncher>> GemmLauncher::Create(const Options& options) {
  int device = 0;
  if (absl::Status status = CudaStatus(cudaGetDevice(&device), "finding a GPU"); !status.ok()) return status;
  if (absl::Status status = CheckHopper(device); !status.ok()) return status;
  absl::StatusOr<Driver> driver = Driver::Load();
  if (!driver.ok()) return driver.status();
  int sms = 0;
  if (absl::Status status =
          CudaStatus(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "counting SMs");
      !status.ok()) {
    return status;
  }
  absl::StatusOr<NvrtcCompiler> compiler =
      NvrtcCompiler::Create(EmbeddedKernelSources(), {"gpu/kernels/gemm.cuh", "gpu/kernels/quantize.cuh"});
  if (!compiler.ok()) return compiler.status();
  std::optional<KernelStore> store;
  if (!options.cache_directory.empty()) {
    absl::StatusOr<KernelStore> opened = KernelStore::Open(options.cache_directory, options.cache_bytes);
    if (!opened.ok()) return opened.status();
    store = *std::move(opened);
  }
  std::unique_ptr<GemmLauncher> launcher(new GemmLauncher(*driver, sms));
  launcher->compiler_ = std::make_unique<NvrtcCompiler>(*std::move(compiler));
  launcher->cache_ = std::make_unique<KernelCache>(
      [raw = launcher->compiler_.get()](const KernelKey& key) {
        std::string log;
        absl::StatusOr<CompiledKernel> kernel = raw->Compile(key, &log);
        if (!kernel.ok()) spdlog::error("kernel {}: {}", key.expression, log);
        return kernel;
      },
      std::move(store), options.compile);
  return launcher;
}

const void* GemmLauncher::FindLoaded(const GemmTraits& traits) {
  absl::MutexLock lock(&mutex_);
  const auto found = loaded_.find(traits);
  return found == loaded_.end() ? nullptr : found->second.function;
}

absl::StatusOr<const void*> GemmLauncher::Load(const GemmTraits& traits, const CompiledKernel& kernel) {
  LoadedKernel loaded;
  absl::Status status =
      CudaStatus(cudaLibraryLoadData(&loaded.library, kernel.cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                 "loading a kernel");
  cudaKernel_t function = nullptr;
  if (status.ok())
    status = CudaStatus(cudaLibraryGetKernel(&function, loaded.library, kernel.symbol.c_str()), "finding a kernel");
  loaded.function = reinterpret_cast<const void*>(function);
  if (status.ok()) {
    status = CudaStatus(
        cudaFuncSetAttribute(loaded.function, cudaFuncAttributeMaxDynamicSharedMemorySize, traits.shared_bytes()),
        "giving a kernel its shared memory");
  }
  if (!status.ok()) {
    if (loaded.library != nullptr) cudaLibraryUnload(loaded.library);
    return status;
  }
  absl::MutexLock lock(&mutex_);
  const auto [entry, is_new] = loaded_.emplace(traits, loaded);
  if (!is_new) cudaLibraryUnload(loaded.library);  // Another thread was faster.
  return entry->second.function;
}

absl::StatusOr<const void*> GemmLauncher::LoadNow(const GemmTraits& traits) {
  if (const void* function = FindLoaded(traits)) return function;
  absl::StatusOr<KernelCache::KernelPointer> kernel = cache_->Get(compiler_->KeyOf(ExpressionOf(traits)));
  if (!kernel.ok()) return kernel.status();
  return Load(traits, **kernel);
}

absl::StatusOr<const void*> GemmLauncher::FunctionFor(GemmConfig* config, const GemmConfig& fallback) {
  if (const void* function = FindLoaded(config->traits)) return function;
  if (const KernelCache::KernelPointer kernel = cache_->Find(compiler_->KeyOf(ExpressionOf(config->traits)))) {
    return Load(config->traits, *kernel);
  }
  *config = fallback;
  return LoadNow(config->traits);
}

GemmConfig GemmLauncher::ConfigOf(const GemmCall& call) const { return SelectConfig(ShapeOf(call), sms_); }

GemmConfig GemmLauncher::CachedConfigOf(const GemmCall& call) {
  if (GroupingOf(call) != Grouping::kDense) return ConfigOf(call);
  const Segment& segment = call.segments[0];
  const DenseKey key{call.scaling, call.output, segment.row_end - segment.row_begin, call.n(), segment.k};
  if (const auto found = dense_configs_.find(key); found != dense_configs_.end()) return found->second;
  const GemmConfig config = ConfigOf(call);
  if (dense_configs_.size() >= kConfigLimit) dense_configs_.clear();
  dense_configs_.emplace(key, config);
  return config;
}

absl::StatusOr<bool> GemmLauncher::Prepare(const GemmTraits& traits) {
  if (FindLoaded(traits) != nullptr) return false;
  const uint64_t compiled = cache_->counts().compiles;
  if (absl::StatusOr<const void*> function = LoadNow(traits); !function.ok()) return function.status();
  return cache_->counts().compiles != compiled;
}

absl::Status GemmLauncher::PrepareFallbacks() {
  std::vector<GemmTraits> fallbacks;
  for (const GemmTraits& traits : SelectableTraits()) {
    const Grouping grouping = traits.map_pairs > 1      ? Grouping::kDepth
                              : traits.max_segments > 1 ? Grouping::kRows
                                                        : Grouping::kDense;
    const GemmShape shape{traits.scaling, traits.output, grouping, 0, 0, {}};
    if (FallbackConfig(shape).traits == traits) fallbacks.push_back(traits);
  }
  // The background threads begin with all of them, this thread takes what they have not begun.
  for (const GemmTraits& traits : fallbacks) cache_->Find(compiler_->KeyOf(ExpressionOf(traits)));
  for (const GemmTraits& traits : fallbacks) {
    if (absl::StatusOr<bool> made = Prepare(traits); !made.ok()) return made.status();
  }
  for (const QuantizeInput input : {QuantizeInput::kBf16, QuantizeInput::kF32}) {
    for (const QuantizeShape shape : {QuantizeShape::kRow, QuantizeShape::kBlock}) {
      if (absl::StatusOr<const void*> function = QuantizeFunction(input, shape); !function.ok())
        return function.status();
    }
  }
  return absl::OkStatus();
}

absl::Status GemmLauncher::Launch(const GemmCall& call, cudaStream_t stream, const std::optional<GemmConfig>& config) {
  if (call.segments.empty() || call.n() == 0) return absl::OkStatus();
  GemmConfig chosen = config ? *config : CachedConfigOf(call);
  absl::StatusOr<const void*> function =
      config ? LoadNow(chosen.traits) : FunctionFor(&chosen, FallbackConfig(ShapeOf(call)));
  if (!function.ok()) return function.status();
  last_config_ = chosen;
  const size_t limit = static_cast<size_t>(chosen.traits.max_segments);
  for (size_t first = 0; first < call.segments.size(); first += limit) {
    const size_t count = std::min(limit, call.segments.size() - first);
    absl::Status status = chosen.traits.map_pairs > 1 ? LaunchSegments<kMaxDepthSegments, kMaxDepthSegments>(
                                                            call, chosen, *function, first, count, stream)
                          : chosen.traits.max_segments > 1
                              ? LaunchSegments<kMaxRowSegments, 1>(call, chosen, *function, first, count, stream)
                              : LaunchSegments<1, 1>(call, chosen, *function, first, count, stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

template <int kMaxSegments, int kMapPairs>
absl::Status GemmLauncher::LaunchSegments(const GemmCall& call, const GemmConfig& config, const void* function,
                                          size_t first, size_t count, cudaStream_t stream) {
  const GemmTraits& traits = config.traits;
  GemmArgs<kMaxSegments, kMapPairs> args;
  for (size_t i = 0; i < (kMapPairs > 1 ? count : 1); ++i) {
    const MatrixView& a = kMapPairs > 1 ? call.segment_a[first + i] : call.a;
    const MatrixView& b = kMapPairs > 1 ? call.segment_b[first + i] : call.b;
    absl::StatusOr<TensorMap> a_map = maps_.Get(InputSpec(traits, a, traits.block_m / traits.cluster_n()));
    if (!a_map.ok()) return a_map.status();
    absl::StatusOr<TensorMap> b_map = maps_.Get(InputSpec(traits, b, traits.block_n / traits.cluster_m()));
    if (!b_map.ok()) return b_map.status();
    args.maps[i] = {*a_map, *b_map};
  }
  absl::StatusOr<TensorMap> d_map = maps_.Get(OutputSpec(traits, call.d));
  if (!d_map.ok()) return d_map.status();
  args.d_map = *d_map;
  args.sfa = call.sfa;
  args.sfb = call.sfb;
  args.d = {call.d.data, call.d.batch_stride, call.d.row_stride};
  args.n = static_cast<int>(call.n());
  args.band = config.band;
  args.segment_count = static_cast<int>(count);
  args.clip_rows = call.clip_rows;
  int64_t tiles = 0;
  const int64_t columns = CeilDiv(call.n(), int64_t{traits.block_n} * traits.cluster_n());
  for (size_t i = 0; i < count; ++i) {
    const Segment& segment = call.segments[first + i];
    args.segments[i] = segment;
    tiles += CeilDiv(segment.row_end - segment.row_begin, int64_t{traits.block_m} * traits.cluster_m()) * columns;
  }
  if (tiles == 0) return absl::OkStatus();
  args.tiles = static_cast<int>(tiles);

  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(traits.cluster());
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch = {};
  const int64_t clusters = std::min<int64_t>(tiles, sms_ / traits.cluster());
  launch.gridDim = dim3(static_cast<unsigned>(clusters * traits.cluster()));
  launch.blockDim = dim3(static_cast<unsigned>(traits.threads()));
  launch.dynamicSmemBytes = static_cast<size_t>(traits.shared_bytes());
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = 2;
  void* parameters[] = {&args};
  return CudaStatus(cudaLaunchKernelExC(&launch, function, parameters), "launching a GEMM");
}

absl::StatusOr<const void*> GemmLauncher::QuantizeFunction(QuantizeInput input, QuantizeShape shape) {
  const int kind = static_cast<int>(input) * 2 + static_cast<int>(shape);
  {
    absl::MutexLock lock(&mutex_);
    if (const auto found = quantize_.find(kind); found != quantize_.end()) return found->second.function;
  }
  const std::string expression = absl::StrCat("gemmd::Quantize", shape == QuantizeShape::kRow ? "Rows" : "Blocks", "<",
                                              input == QuantizeInput::kBf16 ? "gemmd::Bf16" : "float", ">");
  absl::StatusOr<KernelCache::KernelPointer> kernel = cache_->Get(compiler_->KeyOf(expression));
  if (!kernel.ok()) return kernel.status();
  LoadedKernel loaded;
  absl::Status status = CudaStatus(
      cudaLibraryLoadData(&loaded.library, (*kernel)->cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
      "loading a kernel");
  if (!status.ok()) return status;
  cudaKernel_t function = nullptr;
  status = CudaStatus(cudaLibraryGetKernel(&function, loaded.library, (*kernel)->symbol.c_str()), "finding a kernel");
  loaded.function = reinterpret_cast<const void*>(function);
  if (!status.ok()) {
    cudaLibraryUnload(loaded.library);
    return status;
  }
  absl::MutexLock lock(&mutex_);
  const auto [entry, is_new] = quantize_.emplace(kind, loaded);
  if (!is_new) cudaLibraryUnload(loaded.library);
  return entry->second.function;
}

absl::Status GemmLauncher::LaunchQuantize(const QuantizeArgs& args, QuantizeInput input, QuantizeShape shape,
                                          cudaStream_t stream) {
  if (args.m == 0 || args.k == 0) return absl::OkStatus();
  absl::StatusOr<const void*> function = QuantizeFunction(input, shape);
  if (!function.ok()) return function.status();
  constexpr int64_t kRowsPerBlock = 8;     // Warps of a thread block: one 1x128 block each.
  constexpr int64_t kRowsPerGrid = 65535;  // The grid's second dimension.
  constexpr unsigned kThreads = 256;
  const int64_t rows = shape == QuantizeShape::kRow ? kRowsPerBlock : 128;
  QuantizeArgs part = args;
  const int64_t input_bytes = input == QuantizeInput::kBf16 ? 2 : 4;
  for (int64_t first = 0; first < args.m; first += rows * kRowsPerGrid) {
    part.m = std::min<int64_t>(args.m - first, rows * kRowsPerGrid);
    part.x = static_cast<const char*>(args.x) + first * args.x_row_stride * input_bytes;
    part.q = args.q + first * args.q_row_stride;
    part.sf = args.sf + (shape == QuantizeShape::kRow ? first : first / 128) * args.sf_row_stride;
    const dim3 grid(static_cast<unsigned>(CeilDiv(args.k, 128)), static_cast<unsigned>(CeilDiv(part.m, rows)));
    void* parameters[] = {&part};
    if (absl::Status status = CudaStatus(cudaLaunchKernel(*function, grid, dim3(kThreads), parameters, 0, stream),
                                         "launching a quantization");
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace gemmd
