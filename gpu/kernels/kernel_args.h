// SPDX-License-Identifier: Apache-2.0
// What the host and the kernels must agree on: the traits that a GEMM kernel is compiled for, the arguments that it is
// launched with, and the layout of its shared memory. Read by g++ and by NVRTC, so it includes nothing.
#ifndef GEMMD_GPU_KERNELS_KERNEL_ARGS_H_
#define GEMMD_GPU_KERNELS_KERNEL_ARGS_H_

namespace gemmd {

// Which operand two neighbouring thread blocks (a cluster) share: a cluster spans two tiles along N when they share A,
// two along M when they share B. Each loads one half of the shared operand for both.
enum class Multicast : int { kNone = 0, kA = 1, kB = 2 };

// kRowBlock: SFA per 1x128, SFB per 128x128 (1D2D). kRowRow: both per 1x128 (1D1D). kBf16: BF16 operands, no scales.
enum class KernelScaling : int { kRowBlock = 0, kRowRow = 1, kBf16 = 2 };

enum class KernelOutput : int { kBf16 = 0, kF32 = 1, kF32Add = 2 };

inline constexpr int kWarpThreads = 32;
inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kRowBytes = 128;             // K bytes of one pipeline stage = the widest TMA swizzle span.
inline constexpr int kSlabRows = 64;              // Rows of D that one WGMMA computes.
inline constexpr int kSharedBytesLimit = 232448;  // Per thread block on sm_90.

// A kernel's compile-time constants; M, N and K are run-time. `max_segments` and `map_pairs` size GemmArgs.
struct GemmTraits {
  int block_m;  // Tile of D.
  int block_n;
  int stages;         // Depth of the load pipeline.
  int store_buffers;  // Output staging buffers of each math warpgroup.
  Multicast multicast;
  bool swap;  // B's rows take the 64-row side of WGMMA, so that few rows of A waste nothing.
  KernelScaling scaling;
  KernelOutput output;
  int max_segments;
  int map_pairs;

  constexpr bool operator==(const GemmTraits&) const = default;

  constexpr int cluster() const { return multicast == Multicast::kNone ? 1 : 2; }
  constexpr int cluster_m() const { return multicast == Multicast::kB ? 2 : 1; }
  constexpr int cluster_n() const { return multicast == Multicast::kA ? 2 : 1; }
  constexpr int slab_side() const { return swap ? block_n : block_m; }    // Tile extent on the 64-row side of WGMMA.
  constexpr int column_side() const { return swap ? block_m : block_n; }  // Tile extent on its N side.
  constexpr int math_warpgroups() const { return slab_side() >= 2 * kSlabRows ? 2 : 1; }
  constexpr int slabs() const { return slab_side() / kSlabRows / math_warpgroups(); }  // Per math warpgroup.
  constexpr int threads() const { return (math_warpgroups() + 1) * kWarpgroupThreads; }
  constexpr bool scaled() const { return scaling != KernelScaling::kBf16; }
  // Two sets of tensor core sums let the next k-block multiply while this one is promoted; they fit for one slab of up
  // to 128 columns.
  constexpr bool overlapped() const { return scaled() && slabs() == 1 && column_side() <= 128; }
  constexpr int block_k() const { return scaled() ? kRowBytes : kRowBytes / 2; }
  constexpr int output_bytes() const { return output == KernelOutput::kBf16 ? 2 : 4; }

  // An output box is what one TMA store writes: `box_rows` x `box_columns` of D, rows of at most 128 bytes (the swizzle
  // span) that divide the tile. FP32 of two slabs has narrower ones, because there is room for few.
  constexpr int box_columns() const {
    const int widest = kRowBytes / output_bytes() / (slabs() > 1 && output_bytes() > 2 ? 2 : 1);
    if (swap || block_n % widest == 0) return widest;
    return block_n % (widest / 2) == 0 ? widest / 2 : widest / 4;
  }
  constexpr int box_rows() const { return swap ? block_m : kSlabRows; }
  constexpr int box_bytes() const { return box_rows() * box_columns() * output_bytes(); }
  constexpr int boxes_per_slab() const { return (swap ? kSlabRows : block_n) / box_columns(); }

  // Boxes that a warpgroup writes and stores at a time: as many of a slab's as two sets of buffers hold, or one set if it
  // holds all that the tile stores.
  constexpr int boxes_per_batch() const {
    int boxes = boxes_per_slab();
    if (slabs() == 1 && store_buffers == boxes) return boxes;
    while (boxes_per_slab() % boxes != 0 || store_buffers % boxes != 0 || (boxes > 1 && store_buffers / boxes < 2)) --boxes;
    return boxes;
  }

  constexpr int a_stage_bytes() const { return block_m * kRowBytes; }
  constexpr int b_stage_bytes() const { return block_n * kRowBytes; }
  constexpr int sfa_floats() const { return scaled() ? block_m : 0; }
  constexpr int sfb_floats() const {
    if (!scaled()) return 0;
    return scaling == KernelScaling::kRowRow ? block_n : 2;
  }
  constexpr int scale_stage_floats() const { return (sfa_floats() + sfb_floats() + 3) / 4 * 4; }

  // Shared memory, in this order: A stages, B stages, output boxes (all on 1024 bytes: a 128-byte swizzle atom is 8
  // rows), scale factors, then the full and the empty barrier of each stage.
  constexpr int b_offset() const { return stages * a_stage_bytes(); }
  constexpr int output_offset() const { return b_offset() + stages * b_stage_bytes(); }
  constexpr int output_buffer_bytes() const { return (box_bytes() + 1023) / 1024 * 1024; }
  constexpr int scale_offset() const {
    return output_offset() + math_warpgroups() * store_buffers * output_buffer_bytes();
  }
  constexpr int barrier_offset() const { return scale_offset() + (stages * scale_stage_floats() * 4 + 15) / 16 * 16; }
  constexpr int shared_bytes() const { return barrier_offset() + 2 * stages * 8; }

  // Whether a kernel with these traits can exist at all, without spilling registers.
  constexpr bool legal() const {
    const int columns = column_side();
    if (swap && scaled() && columns > 96) {
      if (block_n > kSlabRows || output != KernelOutput::kBf16 || scaling == KernelScaling::kRowRow) return false;
    }
    return slab_side() % kSlabRows == 0 && slab_side() <= 256 && columns >= 8 && columns <= 256 &&
           (columns % 16 == 0 || columns == 8) && (!swap || box_rows() <= 256) && block_m % (8 * cluster_n()) == 0 &&
           block_n % (8 * cluster_m()) == 0 && stages >= 2 && store_buffers >= 1 &&
           shared_bytes() <= kSharedBytesLimit &&
           (scaling != KernelScaling::kRowBlock || swap || block_n <= 128 || 256 % block_n == 0 || block_n % 32 == 0) &&
           (!swap || scaling != KernelScaling::kRowBlock || block_n <= 256);
  }
};

// The same bits as CUtensorMap.
struct alignas(128) TensorMap {
  unsigned long long words[16];
};

struct OperandMaps {
  TensorMap a;
  TensorMap b;
};

// Rows [row_begin, row_end) of matrix `batch` of A and D, times matrix `group` of B. Dense products have one segment.
// k-grouped products have one per group, with a K and operand maps of its own.
struct Segment {
  int batch;
  int group;
  int row_begin;
  int row_end;
  int k;
  int scale_block;  // First 128-block of K in the scale arrays.
};

// Scale factors as strided windows; strides in floats.
struct ScaleView {
  const float* data;
  long long batch_stride;
  long long row_stride;
  long long block_stride;  // From one 128-block of K to the next.
};

// D as plain memory, for rows that a TMA box would overrun; strides in elements.
struct OutputView {
  void* data;
  long long batch_stride;
  long long row_stride;
};

template <int kMaxSegments, int kMapPairs>
struct GemmArgs {
  OperandMaps maps[kMapPairs];  // A: (K, rows, batches), B: (K, N, groups); one pair, or one for each segment.
  TensorMap d_map;              // (N, rows, batches).
  ScaleView sfa;
  ScaleView sfb;
  OutputView d;
  int n;
  int band;  // Tiles along M that are walked together, for L2 (tiles.cuh).
  int segment_count;
  int tiles;       // Clusters' tiles over all segments.
  bool clip_rows;  // A tile's rows beyond row_end belong to somebody else: store them one by one.
  // Where only the GPU knows how many rows of each group are in use: that many of batch i times group i is segment i, for
  // segment_count segments, and segments[0].k their K. `tiles` is then the most there may be. Null elsewhere.
  const int* group_rows;
  Segment segments[kMaxSegments];
};

// Arguments of the kernel that makes group_rows: values from others, each brought into [0, most]. They are read once, so
// that whoever writes to them meanwhile cannot make a GEMM's warps disagree. `host_rows` (or null) gets the same for the
// host.
struct ClampRowsArgs {
  const void* values;
  int* rows;
  int groups;
  int most;
  int* host_rows = nullptr;
};

inline constexpr int kWordsOfWarp = 256;  // Eight of each thread: no more fit beside a GEMM.

// Arguments of the kernel that copies words of 4 bytes.
struct CopyWordsArgs {
  const void* from;
  void* to;
  int words;
};

// rows x columns pieces of a kernel's unit; strides in bytes.
struct RowMove {
  const char* from;
  char* to;
  long long from_row;
  long long from_column;
  long long to_row;
  long long to_column;
  int rows;
  int columns;
};

inline constexpr int kMaxRowMoves = 256;

struct MoveRowsArgs {
  RowMove moves[kMaxRowMoves];
};

// Arguments of the quantize kernel: x [m,k] to q [m,k] and sf. Strides in elements.
struct QuantizeArgs {
  const void* x;
  long long x_row_stride;
  unsigned char* q;
  long long q_row_stride;
  float* sf;
  long long sf_row_stride;
  long long sf_block_stride;
  long long m;
  long long k;
};

}  // namespace gemmd

#endif  // GEMMD_GPU_KERNELS_KERNEL_ARGS_H_
