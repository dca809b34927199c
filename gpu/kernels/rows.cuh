// SPDX-License-Identifier: Apache-2.0
// Small kernels around grouped products: how many rows of each group there are, group arrays on their way to the host,
// and rows on their way between the matrices of several jobs and the packed ones that they are multiplied in.
#pragma once

#include "gpu/kernels/kernel_args.h"

namespace gemmd {

// Grid: groups / threads of a block.
template <typename Value>
__global__ void ClampRows(const __grid_constant__ ClampRowsArgs args) {
  const int group = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (group >= args.groups) return;
  const Value rows = static_cast<const Value*>(args.values)[group];
  const int clamped = rows < 0 ? 0 : rows < args.most ? static_cast<int>(rows) : args.most;
  args.rows[group] = clamped;
  if (args.host_rows != nullptr) args.host_rows[group] = clamped;
}

// Grid: words / kWordsOfWarp; blocks of one warp. Every load is under way before the first is waited for.
template <typename Word>
__global__ void CopyWords(const __grid_constant__ CopyWordsArgs args) {
  constexpr int kWordsOfThread = kWordsOfWarp / kWarpThreads;
  const int first = static_cast<int>(blockIdx.x) * kWordsOfWarp + static_cast<int>(threadIdx.x);
  const Word* const from = static_cast<const Word*>(args.from) + first;
  Word* const to = static_cast<Word*>(args.to) + first;
  const int words = args.words - first;  // From here on.
  Word loaded[kWordsOfThread];
#pragma unroll
  for (int i = 0; i < kWordsOfThread; ++i) {
    if (i * kWarpThreads < words) loaded[i] = from[i * kWarpThreads];
  }
#pragma unroll
  for (int i = 0; i < kWordsOfThread; ++i) {
    if (i * kWarpThreads < words) to[i * kWarpThreads] = loaded[i];
  }
}

// Grid: (moves, blocks for each).
template <typename Unit>
__global__ void MoveRows(const __grid_constant__ MoveRowsArgs args) {
  const RowMove& move = args.moves[blockIdx.x];
  const long long pieces = static_cast<long long>(move.rows) * move.columns;
  const long long step = static_cast<long long>(gridDim.y) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.y) * blockDim.x + threadIdx.x; i < pieces; i += step) {
    const long long row = i / move.columns;
    const long long column = i - row * move.columns;
    *reinterpret_cast<Unit*>(move.to + row * move.to_row + column * move.to_column) =
        *reinterpret_cast<const Unit*>(move.from + row * move.from_row + column * move.from_column);
  }
}

}  // namespace gemmd
