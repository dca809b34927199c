/* SPDX-License-Identifier: Apache-2.0 */
/* A C interface for measuring gemmd's GPU kernels beside another library's, in one process: libgemmd_kernels.so runs
 * one operation on device memory and a stream of the caller's and says which configuration was chosen. Not part of the
 * product. One thread at a time; the current CUDA device must be a Hopper GPU. From Python, through ctypes:
 *
 *   lib = ctypes.CDLL("libgemmd_kernels.so"); lib.gemmd_kernels_open.restype = ctypes.c_void_p
 *
 * D = A * B^T (+ D). A is [batches, M, K], B [groups, N, K], D [batches, M, N]; strides count elements, the last is 1.
 * Extents are from 0 to 2^31 - 1; matrices, their rows and their batches begin on 16 bytes. What does not fit is
 * refused before anything starts, with a message on stderr: the field, what was expected, what came.
 */
#ifndef GEMMD_TESTS_BENCH_GEMMD_KERNELS_H_
#define GEMMD_TESTS_BENCH_GEMMD_KERNELS_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct GemmdMatrix {
  void* data;
  int64_t batches, rows, columns;
  int64_t batch_stride, row_stride;
} GemmdMatrix;

typedef struct GemmdScales { /* FP32; element (batch, row, k / 128). */
  const float* data;
  int64_t batch_stride, row_stride, block_stride;
} GemmdScales;

typedef struct GemmdSegment { /* Rows [row_begin, row_end) of A[batch] and D[batch] multiply with B[group]. */
  int batch, group, row_begin, row_end;
} GemmdSegment;

typedef struct GemmdProduct {
  int scaling; /* 0: SFA 1x128, SFB 128x128. 1: both 1x128. 2: BF16, no scales. */
  int output;  /* 0: BF16. 1: FP32. 2: FP32, added to D. */
  GemmdMatrix a, b, d;
  GemmdScales sfa, sfb;
  const GemmdSegment* segments; /* In host memory. Null: one product of all rows, and one batch and group. */
  int segment_count;            /* 0 without segments. */
} GemmdProduct;

/* D[g] = A_g * B_g^T (+ D[g]) for each group g. A and B hold the A_g, [M, K_g], and the B_g, [N, K_g], one after
 * another without gaps. K_g are multiples of 16 bytes (16 e4m3, 8 BF16), or 0 where there is nothing to multiply: D[g]
 * is then 0, or as before. The scale factors of K_g take the next ceil(K_g / 128) blocks; they have no batches. */
typedef struct GemmdKGroupedProduct {
  int scaling; /* 1: both 1x128. 2: BF16, no scales. */
  int output;  /* 1: FP32. 2: FP32, added to D. */
  int64_t m, n;
  int groups;
  const int64_t* ks; /* [groups], in host memory. */
  const void* a;
  const void* b;
  GemmdMatrix d;        /* [groups, M, N] */
  GemmdScales sfa, sfb; /* [M or N, blocks of all groups] */
} GemmdKGroupedProduct;

/* Q = x / sf in e4m3, and sf = largest magnitude / 448 of each block of x (1 for a block of zeros). Strides count
 * elements. */
typedef struct GemmdQuantization {
  int input; /* 0: BF16. 1: FP32. */
  int shape; /* 0: blocks of 1x128. 1: 128x128. */
  int64_t m, k;
  const void* x; /* [M, K] */
  int64_t x_row_stride;
  void* q; /* [M, K] */
  int64_t q_row_stride;
  float* sf; /* FP32; [M, ceil(K / 128)], or [ceil(M / 128), ceil(K / 128)]; any strides. */
  int64_t sf_row_stride, sf_block_stride;
} GemmdQuantization;

/* `cache_directory` may be null: kernels then live in memory only. Null if there is no Hopper GPU (said on stderr). */
void* gemmd_kernels_open(const char* cache_directory);
void gemmd_kernels_close(void* kernels);

/* Starts the product on `stream` (a cudaStream_t) with the selected configuration, which is compiled first if need be,
 * and copies its description to `config`. 0 on success; else the message is on stderr. */
int gemmd_kernels_run(void* kernels, const GemmdProduct* product, void* stream, char* config, int config_size);

/* The same for a masked product whose rows only the GPU knows: D[g] = A[g] * B[g]^T in rows [0, masked_m[g]) of each
 * group g, all in GPU memory: product->a [groups, M_max, K], b [groups, N, K], d [groups, M_max, N], masked_m [groups].
 * Values below 0 count as 0, those above M_max as M_max; other rows of D stay as they are. `rows` [groups] is scratch
 * in GPU memory, in use until the product is done. product->segments must be null. */
int gemmd_kernels_run_masked(void* kernels, const GemmdProduct* product, const int32_t* masked_m, int32_t* rows,
                             void* stream, char* config, int config_size);

/* The same for a k-grouped product. */
int gemmd_kernels_run_k_grouped(void* kernels, const GemmdKGroupedProduct* product, void* stream, char* config,
                                int config_size);

/* Starts the quantization on `stream`. 0 on success; else the message is on stderr. */
int gemmd_kernels_quantize(void* kernels, const GemmdQuantization* quantization, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* GEMMD_TESTS_BENCH_GEMMD_KERNELS_H_ */
