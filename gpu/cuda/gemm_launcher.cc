// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/gemm_launcher.h"

#include "gpu/cuda_status.h"
#include "gpu/jit/kernel_source.h"
#include "proto/cores.h"
#include "proto/job_ring.h"

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <thread>
#include <utility>

namespace gemmd {
namespace {

constexpr size_t kChoiceLimit = 65536;             // Remembered shapes; beyond that all are forgotten.
constexpr uint64_t kLoadAgainNanos = 100'000'000;  // On a full GPU a load fails after 0.3 ms.
constexpr int kStartThreads = 8;                   // Compile the fallbacks at most; one for each core.

// The kernels beside GEMMs.
const char* QuantizeExpression(QuantizeInput input, QuantizeShape shape) {
  const bool bf16 = input == QuantizeInput::kBf16;
  if (shape == QuantizeShape::kRow) return bf16 ? "gemmd::QuantizeRows<gemmd::Bf16>" : "gemmd::QuantizeRows<float>";
  return bf16 ? "gemmd::QuantizeBlocks<gemmd::Bf16>" : "gemmd::QuantizeBlocks<float>";
}
const char* MoveExpression(int unit) {
  return unit == 16  ? "gemmd::MoveRows<uint4>"
         : unit == 4 ? "gemmd::MoveRows<unsigned int>"
                     : "gemmd::MoveRows<unsigned char>";
}
constexpr const char* kClampExpression = "gemmd::ClampRows<int>";
constexpr const char* kCopyExpression = "gemmd::CopyWords<unsigned int>";

// Threads of a block that finds room beside a GEMM of another stream; more than a warp might have to wait for its end.
constexpr unsigned kThreadsBesideGemm = kWarpThreads;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

Grouping GroupingOf(const GemmCall& call) {
  if (!call.segment_a.empty()) return Grouping::kDepth;
  return call.clip_rows || call.segments.size() > 1 ? Grouping::kRows : Grouping::kDense;
}

GemmShape ShapeOf(const GemmCall& call) {
  GemmShape shape{call.scaling, call.output, GroupingOf(call), call.n(), 0, {}};
  shape.rows.reserve(call.segments.size());
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

CUlaunchConfig SmallLaunch(int64_t blocks_x, int64_t blocks_y, unsigned threads, cudaStream_t stream) {
  CUlaunchConfig launch = {};
  launch.gridDimX = static_cast<unsigned>(blocks_x);
  launch.gridDimY = static_cast<unsigned>(blocks_y);
  launch.gridDimZ = 1;
  launch.blockDimX = threads;
  launch.blockDimY = launch.blockDimZ = 1;
  launch.hStream = stream;
  return launch;
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

GemmLauncher::GemmLauncher(const Driver& driver, int device, int sms, const WorkerCounters* counters)
    : driver_(driver), device_(device), sms_(sms), counters_(counters), maps_(driver_) {}

GemmLauncher::~GemmLauncher() {
  cache_.reset();  // Its threads end first.
  absl::MutexLock lock(&mutex_);
  for (const auto& [traits, kernel] : loaded_) cudaLibraryUnload(kernel.module);
  for (const auto& [expression, kernel] : small_) cudaLibraryUnload(kernel.module);
}

absl::StatusOr<std::unique_ptr<GemmLauncher>> GemmLauncher::Create(const Options& options) {
  int device = 0;
  if (absl::Status status = CudaStatus(cudaGetDevice(&device), "finding a GPU"); !status.ok()) return status;
  if (absl::Status status = CheckHopper(device); !status.ok()) return status;
  // Makes the GPU's context the thread's, which the driver's functions need.
  if (absl::Status status = CudaStatus(cudaSetDevice(device), "opening the GPU"); !status.ok()) return status;
  absl::StatusOr<Driver> driver = Driver::Load();
  if (!driver.ok()) return driver.status();
  int sms = 0;
  if (absl::Status status =
          CudaStatus(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "counting SMs");
      !status.ok()) {
    return status;
  }
  absl::StatusOr<NvrtcCompiler> compiler = NvrtcCompiler::Create(
      EmbeddedKernelSources(), {"gpu/kernels/gemm.cuh", "gpu/kernels/quantize.cuh", "gpu/kernels/rows.cuh"},
      options.macros);
  if (!compiler.ok()) return compiler.status();
  std::optional<KernelStore> store;
  if (!options.cache_directory.empty()) {
    absl::StatusOr<KernelStore> opened = KernelStore::Open(options.cache_directory, options.cache_bytes);
    if (!opened.ok()) return opened.status();
    store = *std::move(opened);
  }
  std::unique_ptr<GemmLauncher> launcher(new GemmLauncher(*driver, device, sms, options.counters));
  launcher->compiler_ = std::make_unique<NvrtcCompiler>(*std::move(compiler));
  KernelCache::Options compile = options.compile;
  compile.counters = options.counters;
  launcher->cache_ = std::make_unique<KernelCache>(
      [raw = launcher->compiler_.get()](const KernelKey& key) {
        std::string log;
        absl::StatusOr<CompiledKernel> kernel = raw->Compile(key, &log);
        if (!kernel.ok()) spdlog::error("kernel {}: {}", key.expression, log);
        return kernel;
      },
      std::move(store), compile);
  return launcher;
}

CUfunction GemmLauncher::FindLoaded(const GemmTraits& traits) {
  absl::MutexLock lock(&mutex_);
  const auto found = loaded_.find(traits);
  return found == loaded_.end() ? nullptr : found->second.function;
}

absl::StatusOr<GemmLauncher::LoadedKernel> GemmLauncher::LoadModule(const CompiledKernel& kernel,
                                                                    int shared_bytes) const {
  LoadedKernel loaded;
  absl::Status status = CudaStatus(cudaSetDevice(device_), "opening the GPU");
  if (status.ok()) {
    status =
        CudaStatus(cudaLibraryLoadData(&loaded.module, kernel.cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                   "loading a kernel");
  }
  cudaKernel_t found = nullptr;
  if (status.ok())
    status = CudaStatus(cudaLibraryGetKernel(&found, loaded.module, kernel.symbol.c_str()), "finding a kernel");
  if (status.ok()) status = CudaStatus(driver_.kernel_function(&loaded.function, found), "finding a kernel");
  // A driver may put this off until the first launch, which then fails on a full GPU.
  if (status.ok() && driver_.function_load != nullptr)
    status = CudaStatus(driver_.function_load(loaded.function), "loading a kernel");
  if (status.ok() && shared_bytes > 0) {
    status = CudaStatus(
        driver_.function_set_attribute(loaded.function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes),
        "giving a kernel its shared memory");
  }
  if (status.ok()) return loaded;
  if (loaded.module != nullptr) cudaLibraryUnload(loaded.module);
  cudaGetLastError();  // The next call must not report it.
  return status;
}

absl::StatusOr<CUfunction> GemmLauncher::Load(const GemmTraits& traits, const CompiledKernel& kernel) {
  absl::StatusOr<LoadedKernel> loaded = LoadModule(kernel, traits.shared_bytes());
  if (!loaded.ok()) return loaded.status();
  absl::MutexLock lock(&mutex_);
  const auto [entry, is_new] = loaded_.emplace(traits, *loaded);
  if (!is_new) cudaLibraryUnload(loaded->module);  // Another thread was faster.
  return entry->second.function;
}

absl::StatusOr<CUfunction> GemmLauncher::LoadNow(const GemmTraits& traits) {
  if (CUfunction function = FindLoaded(traits)) return function;
  absl::StatusOr<KernelCache::KernelPointer> kernel = cache_->Get(compiler_->KeyOf(ExpressionOf(traits)));
  if (!kernel.ok()) return kernel.status();
  return Load(traits, **kernel);
}

absl::StatusOr<CUfunction> GemmLauncher::FindReady(const GemmTraits& traits) {
  if (CUfunction function = FindLoaded(traits)) return function;
  const KernelCache::KernelPointer kernel = cache_->Find(compiler_->KeyOf(ExpressionOf(traits)));
  if (kernel == nullptr || MonotonicNanos() < load_again_ns_) return nullptr;
  absl::StatusOr<CUfunction> function = Load(traits, *kernel);
  if (!function.ok()) load_again_ns_ = MonotonicNanos() + kLoadAgainNanos;
  return function;
}

GemmConfig GemmLauncher::ConfigOf(const GemmCall& call) const { return SelectConfig(ShapeOf(call), sms_); }

GemmLauncher::Choice& GemmLauncher::DenseChoiceOf(const GemmCall& call) {
  const Segment& segment = call.segments[0];
  const DenseKey key{call.scaling, call.output, segment.row_end - segment.row_begin, call.n(), segment.k};
  if (const auto found = dense_choices_.find(key); found != dense_choices_.end()) return found->second;
  if (dense_choices_.size() >= kChoiceLimit) dense_choices_.clear();
  return dense_choices_.emplace(key, Choice{ConfigOf(call)}).first->second;
}

absl::StatusOr<bool> GemmLauncher::Prepare(const GemmTraits& traits) {
  if (FindLoaded(traits) != nullptr) return false;
  const uint64_t compiled = cache_->counts().compiles;
  if (absl::StatusOr<CUfunction> function = LoadNow(traits); !function.ok()) return function.status();
  return cache_->counts().compiles != compiled;
}

absl::Status GemmLauncher::PrepareFallbacks() {
  std::vector<std::function<absl::Status()>> kernels;
  for (const GemmTraits& traits : SelectableTraits()) {
    const Grouping grouping = traits.map_pairs > 1      ? Grouping::kDepth
                              : traits.max_segments > 1 ? Grouping::kRows
                                                        : Grouping::kDense;
    const GemmShape shape{traits.scaling, traits.output, grouping, 0, 0, {}};
    if (FallbackConfig(shape).traits == traits)
      kernels.emplace_back([this, traits] { return LoadNow(traits).status(); });
  }
  std::vector<const char*> small = {kClampExpression, kCopyExpression, MoveExpression(16), MoveExpression(4),
                                    MoveExpression(1)};
  for (const QuantizeInput input : {QuantizeInput::kBf16, QuantizeInput::kF32}) {
    for (const QuantizeShape shape : {QuantizeShape::kRow, QuantizeShape::kBlock})
      small.push_back(QuantizeExpression(input, shape));
  }
  for (const char* expression : small)
    kernels.emplace_back([this, expression] { return SmallFunction(expression).status(); });
  // Nothing else runs while a worker starts, so this may take every core; compiles beside work may not.
  std::atomic<size_t> next = 0;
  std::vector<absl::Status> statuses(kernels.size());
  const auto make = [&] {
    for (size_t i = next++; i < kernels.size(); i = next++) statuses[i] = kernels[i]();
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < std::min(UsableCores(), kStartThreads); ++i) threads.emplace_back(make);
  make();
  for (std::thread& thread : threads) thread.join();
  absl::Status status;
  for (const absl::Status& s : statuses) status.Update(s);
  return status;
}

absl::Status GemmLauncher::Launch(const GemmCall& call, cudaStream_t stream, const std::optional<GemmConfig>& config) {
  if (call.segments.empty() || call.n() == 0) return absl::OkStatus();
  if (config) {
    absl::StatusOr<CUfunction> function = LoadNow(config->traits);
    return function.ok() ? LaunchWith(call, *config, *function, stream) : function.status();
  }
  Choice grouped;
  const bool dense = GroupingOf(call) == Grouping::kDense;
  if (!dense) grouped.config = ConfigOf(call);
  Choice& choice = dense ? DenseChoiceOf(call) : grouped;
  if (choice.function == nullptr) {
    absl::StatusOr<CUfunction> ready = FindReady(choice.config.traits);
    if (absl::IsDataLoss(ready.status())) return ready.status();
    // A kernel that does not fit into the GPU's memory just now is as good as one that is not compiled yet.
    if (ready.ok()) {
      choice.function = *ready;
    } else {
      not_loaded_.Log(spdlog::level::warn, absl::StrCat("kernel not loaded: ", ready.status().ToString()));
    }
  }
  if (counters_ != nullptr) {
    WorkerCounts& counts = counters_->counts();
    Count(choice.function != nullptr ? counts.kernel_hits : counts.kernel_misses);
  }
  if (choice.function != nullptr) return LaunchWith(call, choice.config, choice.function, stream);
  const GemmConfig fallback = FallbackConfig(ShapeOf(call));
  absl::StatusOr<CUfunction> function = LoadNow(fallback.traits);
  return function.ok() ? LaunchWith(call, fallback, *function, stream) : function.status();
}

absl::Status GemmLauncher::LaunchWith(const GemmCall& call, const GemmConfig& config, CUfunction function,
                                      cudaStream_t stream) {
  last_config_ = config;
  const size_t limit =
      call.group_rows != nullptr ? call.segments.size() : static_cast<size_t>(config.traits.max_segments);
  for (size_t first = 0; first < call.segments.size(); first += limit) {
    const size_t count = std::min(limit, call.segments.size() - first);
    absl::Status status = config.traits.map_pairs > 1 ? LaunchSegments<kMaxDepthSegments, kMaxDepthSegments>(
                                                            call, config, function, first, count, stream)
                          : config.traits.max_segments > 1
                              ? LaunchSegments<kMaxRowSegments, 1>(call, config, function, first, count, stream)
                              : LaunchSegments<1, 1>(call, config, function, first, count, stream);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

template <int kMaxSegments, int kMapPairs>
absl::Status GemmLauncher::LaunchSegments(const GemmCall& call, const GemmConfig& config, CUfunction function,
                                          size_t first, size_t count, cudaStream_t stream) {
  const GemmTraits& traits = config.traits;
  GemmArgs<kMaxSegments, kMapPairs> args;
  for (size_t i = 0; i < (kMapPairs > 1 ? count : 1); ++i) {
    const MatrixView& a = kMapPairs > 1 ? call.segment_a[first + i] : call.a;
    const MatrixView& b = kMapPairs > 1 ? call.segment_b[first + i] : call.b;
    absl::Status status = maps_.Get(InputSpec(traits, a, traits.block_m / traits.cluster_n()), &args.maps[i].a);
    if (status.ok()) status = maps_.Get(InputSpec(traits, b, traits.block_n / traits.cluster_m()), &args.maps[i].b);
    if (!status.ok()) return status;
  }
  if (absl::Status status = maps_.Get(OutputSpec(traits, call.d), &args.d_map); !status.ok()) return status;
  args.sfa = call.sfa;
  args.sfb = call.sfb;
  args.d = {call.d.data, call.d.batch_stride, call.d.row_stride};
  args.n = static_cast<int>(call.n());
  args.band = config.band;
  args.segment_count = static_cast<int>(count);
  args.clip_rows = call.clip_rows;
  args.group_rows = call.group_rows;
  int64_t tiles = 0;
  const int64_t columns = CeilDiv(call.n(), int64_t{traits.block_n} * traits.cluster_n());
  const unsigned height = static_cast<unsigned>(traits.block_m * traits.cluster_m());
  for (size_t i = 0; i < count; ++i) {
    const Segment& segment = call.segments[first + i];
    if (i < kMaxSegments) args.segments[i] = segment;  // More only where group_rows says what is in them.
    tiles += (static_cast<unsigned>(segment.row_end - segment.row_begin) + height - 1) / height * columns;
  }
  if (tiles == 0) return absl::OkStatus();
  args.tiles = static_cast<int>(std::min<int64_t>(tiles, std::numeric_limits<int>::max()));

  CUlaunchAttribute attributes[2] = {};
  attributes[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attributes[0].value.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attributes[1].value.clusterDim = {static_cast<unsigned>(traits.cluster()), 1, 1};
  CUlaunchConfig launch = {};
  const int64_t clusters = std::min<int64_t>(tiles, sms_ / traits.cluster());
  launch.gridDimX = static_cast<unsigned>(clusters * traits.cluster());
  launch.gridDimY = launch.gridDimZ = 1;
  launch.blockDimX = static_cast<unsigned>(traits.threads());
  launch.blockDimY = launch.blockDimZ = 1;
  launch.sharedMemBytes = static_cast<unsigned>(traits.shared_bytes());
  launch.hStream = stream;
  launch.attrs = attributes;
  launch.numAttrs = traits.cluster() > 1 ? 2 : 1;
  void* parameters[] = {&args};
  ++launches_;
  return CudaStatus(driver_.launch_kernel(&launch, function, parameters, nullptr), "launching a GEMM");
}

absl::StatusOr<CUfunction> GemmLauncher::SmallFunction(const char* expression) {
  {
    absl::MutexLock lock(&mutex_);
    if (const auto found = small_.find(expression); found != small_.end()) return found->second.function;
  }
  absl::StatusOr<KernelCache::KernelPointer> kernel = cache_->Get(compiler_->KeyOf(expression));
  if (!kernel.ok()) return kernel.status();
  absl::StatusOr<LoadedKernel> loaded = LoadModule(**kernel, 0);
  if (!loaded.ok()) return loaded.status();
  absl::MutexLock lock(&mutex_);
  const auto [entry, is_new] = small_.emplace(expression, *loaded);
  if (!is_new) cudaLibraryUnload(loaded->module);
  return entry->second.function;
}

absl::Status GemmLauncher::LaunchQuantize(const QuantizeArgs& args, QuantizeInput input, QuantizeShape shape,
                                          cudaStream_t stream) {
  if (args.m == 0 || args.k == 0) return absl::OkStatus();
  absl::StatusOr<CUfunction> function = SmallFunction(QuantizeExpression(input, shape));
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
    const CUlaunchConfig launch = SmallLaunch(CeilDiv(args.k, 128), CeilDiv(part.m, rows), kThreads, stream);
    void* parameters[] = {&part};
    absl::Status status =
        CudaStatus(driver_.launch_kernel(&launch, *function, parameters, nullptr), "launching a quantization");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status GemmLauncher::LaunchClampRows(const ClampRowsArgs& args, cudaStream_t stream) {
  if (args.groups == 0) return absl::OkStatus();
  absl::StatusOr<CUfunction> function = SmallFunction(kClampExpression);
  if (!function.ok()) return function.status();
  const int64_t blocks = CeilDiv(args.groups, kThreadsBesideGemm);
  const CUlaunchConfig launch = SmallLaunch(blocks, 1, kThreadsBesideGemm, stream);
  ClampRowsArgs copy = args;
  void* parameters[] = {&copy};
  return CudaStatus(driver_.launch_kernel(&launch, *function, parameters, nullptr), "counting the rows of groups");
}

absl::Status GemmLauncher::LaunchCopyWords(const CopyWordsArgs& args, cudaStream_t stream) {
  if (args.words == 0) return absl::OkStatus();
  absl::StatusOr<CUfunction> function = SmallFunction(kCopyExpression);
  if (!function.ok()) return function.status();
  const CUlaunchConfig launch = SmallLaunch(CeilDiv(args.words, kWordsOfWarp), 1, kThreadsBesideGemm, stream);
  CopyWordsArgs copy = args;
  void* parameters[] = {&copy};
  return CudaStatus(driver_.launch_kernel(&launch, *function, parameters, nullptr), "copying words");
}

absl::Status GemmLauncher::LaunchMoveRows(absl::Span<const RowMove> moves, int unit, cudaStream_t stream) {
  if (moves.empty()) return absl::OkStatus();
  absl::StatusOr<CUfunction> function = SmallFunction(MoveExpression(unit));
  if (!function.ok()) return function.status();
  constexpr unsigned kThreads = 256;
  constexpr int64_t kPiecesPerThread = 4;
  constexpr int64_t kMostBlocks = 64;  // For one move: no more than keep memory busy.
  MoveRowsArgs args;
  for (size_t first = 0; first < moves.size(); first += kMaxRowMoves) {
    const absl::Span<const RowMove> part = moves.subspan(first, kMaxRowMoves);
    int64_t pieces = 1;
    for (size_t i = 0; i < part.size(); ++i) {
      args.moves[i] = part[i];
      pieces = std::max(pieces, int64_t{part[i].rows} * part[i].columns);
    }
    const int64_t blocks = std::min(CeilDiv(pieces, kThreads * kPiecesPerThread), kMostBlocks);
    const CUlaunchConfig launch = SmallLaunch(static_cast<int64_t>(part.size()), blocks, kThreads, stream);
    void* parameters[] = {&args};
    absl::Status status =
        CudaStatus(driver_.launch_kernel(&launch, *function, parameters, nullptr), "launching moves of rows");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace gemmd
