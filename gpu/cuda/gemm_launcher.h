// SPDX-License-Identifier: Apache-2.0
// Launches GEMMs, and the small kernels around them, on a stream: chooses the configuration, finds or compiles the
// kernel, makes the tensor maps, launches. Everything that can be kept between launches is kept: a dense product of a
// known shape on known addresses takes four lookups and one driver call, and allocates nothing. One thread at a time,
// except Prepare; the launcher's GPU is the thread's current device.
#ifndef GEMMD_GPU_CUDA_GEMM_LAUNCHER_H_
#define GEMMD_GPU_CUDA_GEMM_LAUNCHER_H_

#include "gpu/cuda/driver.h"
#include "gpu/cuda/gemm_call.h"
#include "gpu/cuda/gemm_config.h"
#include "gpu/cuda/tensor_map.h"
#include "gpu/jit/kernel_cache.h"
#include "gpu/jit/nvrtc_compiler.h"
#include "proto/log.h"

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace gemmd {

enum class QuantizeInput { kBf16, kF32 };
enum class QuantizeShape { kRow, kBlock };  // 1x128, 128x128.

class GemmLauncher {
 public:
  struct Options {
    std::string cache_directory;                 // Empty: kernels are kept in memory only.
    uint64_t cache_bytes = uint64_t{256} << 20;  // A kernel is about 50 KiB; all that selection can give are 20 MiB.
    KernelCache::Options compile;
    std::vector<std::string> macros;  // For variants that only tests compile.
    // Where hits, misses and compiles are counted, if anywhere. Outlives the launcher.
    const WorkerCounters* counters = nullptr;
  };

  // The current device. Errors: FAILED_PRECONDITION if it is not a Hopper GPU.
  static absl::StatusOr<std::unique_ptr<GemmLauncher>> Create(const Options& options);
  ~GemmLauncher();

  // Starts the product. Its configuration is `config` if given (and is then waited for), else the selected one if its
  // kernel is ready, else the fallback while the selected kernel compiles in the background.
  absl::Status Launch(const GemmCall& call, cudaStream_t stream,
                      const std::optional<GemmConfig>& config = std::nullopt);

  absl::Status LaunchQuantize(const QuantizeArgs& args, QuantizeInput input, QuantizeShape shape, cudaStream_t stream);

  // Fills in GemmCall::group_rows for the products that follow on the stream.
  absl::Status LaunchClampRows(const ClampRowsArgs& args, cudaStream_t stream);

  // Copies words, beside whatever else runs; `to` may be page-locked memory of the host.
  absl::Status LaunchCopyWords(const CopyWordsArgs& args, cudaStream_t stream);

  // Moves pieces of `unit` bytes (16, 4 or 1) within GPU memory; any number of moves.
  absl::Status LaunchMoveRows(absl::Span<const RowMove> moves, int unit, cudaStream_t stream);

  // Compiles the kernels that must always be there, on up to one thread for each core. Waits.
  absl::Status PrepareFallbacks();

  // Compiles the kernel of a configuration; any thread. Returns whether it had to be made.
  absl::StatusOr<bool> Prepare(const GemmTraits& traits);

  // What Launch selects.
  GemmConfig ConfigOf(const GemmCall& call) const;

  // The configuration that the latest Launch ran.
  const GemmConfig& last_config() const { return last_config_; }

  // GEMM kernels launched so far.
  uint64_t launches() const { return launches_; }

  int sms() const { return sms_; }
  KernelCache::Counts counts() const { return cache_->counts(); }

 private:
  // A kernel in the GPU's memory; stays as long as the launcher.
  struct LoadedKernel {
    cudaLibrary_t module = nullptr;
    CUfunction function = nullptr;
  };

  // What was selected for a shape.
  struct Choice {
    GemmConfig config;
    CUfunction function = nullptr;  // Null until its kernel is ready.
  };

  // What selection depends on for products with one segment.
  struct DenseKey {
    KernelScaling scaling;
    KernelOutput output;
    int64_t m;
    int64_t n;
    int64_t k;
    bool operator==(const DenseKey&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const DenseKey& key) {
      return H::combine(std::move(h), key.scaling, key.output, key.m, key.n, key.k);
    }
  };

  GemmLauncher(const Driver& driver, int device, int sms, const WorkerCounters* counters);

  // The kernel if it is loaded, else null.
  CUfunction FindLoaded(const GemmTraits& traits) ABSL_LOCKS_EXCLUDED(mutex_);
  // The kernel if it is loaded or can be loaded at once, else null: then it is compiled in the background, or the GPU
  // had no room for a kernel a moment ago.
  absl::StatusOr<CUfunction> FindReady(const GemmTraits& traits);
  absl::StatusOr<CUfunction> LoadNow(const GemmTraits& traits);
  absl::StatusOr<CUfunction> Load(const GemmTraits& traits, const CompiledKernel& kernel);
  absl::StatusOr<LoadedKernel> LoadModule(const CompiledKernel& kernel, int shared_bytes) const;
  absl::StatusOr<CUfunction> SmallFunction(const char* expression) ABSL_LOCKS_EXCLUDED(mutex_);

  Choice& DenseChoiceOf(const GemmCall& call);
  absl::Status LaunchWith(const GemmCall& call, const GemmConfig& config, CUfunction function, cudaStream_t stream);
  template <int kMaxSegments, int kMapPairs>
  absl::Status LaunchSegments(const GemmCall& call, const GemmConfig& config, CUfunction function, size_t first,
                              size_t count, cudaStream_t stream);

  const Driver driver_;
  const int device_;
  const int sms_;
  const WorkerCounters* const counters_;
  TensorMapCache maps_;
  std::unique_ptr<NvrtcCompiler> compiler_;
  std::unique_ptr<KernelCache> cache_;
  absl::flat_hash_map<DenseKey, Choice> dense_choices_;
  GemmConfig last_config_;
  uint64_t launches_ = 0;
  LogLimiter not_loaded_;       // A full GPU refuses every kernel,
  uint64_t load_again_ns_ = 0;  // and is not asked again before this (CLOCK_MONOTONIC).
  absl::Mutex mutex_;
  absl::flat_hash_map<GemmTraits, LoadedKernel> loaded_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, LoadedKernel> small_ ABSL_GUARDED_BY(mutex_);  // By expression: all but GEMMs.
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_GEMM_LAUNCHER_H_
