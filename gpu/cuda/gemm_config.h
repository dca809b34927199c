// SPDX-License-Identifier: Apache-2.0
// Which kernel runs a product: a pure function of shape and device. Kernels differ in tile, cluster and orientation,
// not in the result: every configuration adds the same products in the same order.
#ifndef GEMMD_GPU_CUDA_GEMM_CONFIG_H_
#define GEMMD_GPU_CUDA_GEMM_CONFIG_H_

#include "gpu/kernels/kernel_args.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

// Segments and operand maps that travel with a launch: its arguments live in constant memory, at most 32 KiB. Products
// with more groups take several launches.
inline constexpr int kMaxRowSegments = 256;
inline constexpr int kMaxDepthSegments = 48;

enum class Grouping { kDense, kRows, kDepth };  // kDepth: k-grouped.

struct GemmShape {
  KernelScaling scaling = KernelScaling::kRowBlock;
  KernelOutput output = KernelOutput::kBf16;
  Grouping grouping = Grouping::kDense;
  int64_t n = 0;
  int64_t k = 0;              // Of the largest segment.
  std::vector<int64_t> rows;  // Of each segment.
};

struct GemmConfig {
  GemmTraits traits{};
  int band = 8;
};

template <typename H>
H AbslHashValue(H h, const GemmTraits& t) {
  return H::combine(std::move(h), t.block_m, t.block_n, t.stages, t.store_buffers, t.multicast, t.swap, t.scaling,
                    t.output, t.max_segments, t.map_pairs);
}

// The tile of D, how it lies on the tensor cores and what a cluster shares: what selection chooses between.
struct TileChoice {
  int block_m = 0;
  int block_n = 0;
  bool swap = false;
  Multicast multicast = Multicast::kNone;
};

// Everything else follows from the tile: stages and staging buffers fill the shared memory. Not legal() if nothing
// fits.
GemmTraits TraitsOf(const TileChoice& tile, KernelScaling scaling, KernelOutput output, Grouping grouping);

// The tiles that selection may choose for this kind of product.
std::vector<TileChoice> Candidates(KernelScaling scaling, Grouping grouping);

// Predicted time of a shape with one configuration, in nanoseconds.
double PredictNanos(const GemmShape& shape, const GemmTraits& traits, int sms);

GemmConfig SelectConfig(const GemmShape& shape, int sms);

// The configuration for any shape of its kind, compiled before the device is ready.
GemmConfig FallbackConfig(const GemmShape& shape);

// How many tiles along M to walk together.
int BandOf(const GemmTraits& traits, int sms);

// "128x160 a s5": for logs and benchmarks.
std::string Describe(const GemmTraits& traits);

// The kernel's instantiation for NVRTC.
std::string ExpressionOf(const GemmTraits& traits);

// Every configuration that selection can give: each is compiled by a test.
std::vector<GemmTraits> SelectableTraits();

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_GEMM_CONFIG_H_
