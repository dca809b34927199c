// SPDX-License-Identifier: Apache-2.0
// How a tensor comes to be from its content: copied, transposed, quantized, or both in this order. Which tensors that
// makes, in which chunks the content is taken, and which jobs bring a chunk in. Pure; used by TensorCreation.
//
// A chunk is some rows of one matrix of the content: what is staged at a time of a file. Transposed, it becomes columns
// of the tensor; blocks of scale factors never straddle chunks, so every job writes what no other does.
#ifndef GEMMD_SERVER_TENSOR_PLAN_H_
#define GEMMD_SERVER_TENSOR_PLAN_H_

#include "proto/job.h"
#include "server/copy_job.h"
#include "server/tensor_registry.h"

#include "absl/status/statusor.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace gemmd {

// Bytes of a chunk, unless its smallest number of rows has more: what a disk reads and a worker takes in about 1 ms.
inline constexpr int64_t kContentChunkBytes = 4 << 20;
// After the name of a quantized tensor: that of its scale factors.
inline constexpr char kScalesSuffix[] = ".sf";

// What is wanted. dtype kNone and an empty shape follow from the content.
struct TensorWish {
  TensorSpec spec = {};
  bool transpose = false;
  QuantizeBlock quantize = QuantizeBlock::kUnset;  // kUnset: as it is.
};

// What there is: contiguous, row-major.
struct ContentLayout {
  DType dtype = DType::kNone;
  std::vector<int64_t> shape;
};

struct TensorPlan {
  TensorSpec tensor;
  std::optional<TensorSpec> scales;
  // The content as matrices. Bytes to be copied are one matrix of one column.
  DType dtype = DType::kU8;
  int64_t groups = 1;
  int64_t rows = 0;
  int64_t columns = 1;
  bool transpose = false;
  QuantizeBlock quantize = QuantizeBlock::kUnset;
  int64_t chunk_rows = 0;
};

struct ContentChunk {
  int64_t group = 0;
  int64_t row = 0;
  int64_t rows = 0;
  uint64_t offset = 0;  // Bytes from the start of the content.
  uint64_t byte_size = 0;
};

// Where the jobs of a chunk find things.
struct ChunkPlaces {
  RegionOffset content;  // The chunk's first element.
  RegionOffset scratch;  // ScratchBytes of the chunk.
  uint64_t tensor = 0;   // Regions.
  uint64_t scales = 0;
};

// Errors: INVALID_ARGUMENT, naming dtype, shape, transpose, quantize or name.
absl::StatusOr<TensorPlan> PlanTensor(const TensorWish& wish, const ContentLayout& content);

// The first chunk, and the one after `chunk`; none after the last.
ContentChunk FirstChunk(const TensorPlan& plan);
std::optional<ContentChunk> NextChunk(const TensorPlan& plan, const ContentChunk& chunk);

// What the jobs of a chunk need between them: 0 unless it is both transposed and quantized.
uint64_t ScratchBytes(const TensorPlan& plan, const ContentChunk& chunk);

// One or two jobs, to run one after the other. Session and deadline are left for the caller to set.
std::vector<JobDescriptor> JobsOf(const TensorPlan& plan, const ContentChunk& chunk, const ChunkPlaces& places);

}  // namespace gemmd

#endif  // GEMMD_SERVER_TENSOR_PLAN_H_
