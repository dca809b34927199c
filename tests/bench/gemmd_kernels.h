/* SPDX-License-Identifier: Apache-2.0 */
/* A C interface for measuring gemmd's GPU kernels beside another library's, in one process: libgemmd_kernels.so runs
 * one operation on device memory and a stream of the caller's and says which configuration was chosen. Not part of the
 * product. One thread at a time; the current CUDA device must be a Hopper GPU. From Python, through ctypes:
 *
 *   lib = ctypes.CDLL("libgemmd_kernels.so"); lib.gemmd_kernels_open.restype = ctypes.c_void_p
 *
 * D = A * B^T (+ D). A is [batches, M, K], B [groups, N, K], D [batches, M, N]; strides count elements, the last is 1.
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
  const GemmdSegment* segments; /* In host memory. Null: one product of all rows, rows beyond M are clipped. */
  int segment_count;
} GemmdProduct;

/* `cache_directory` may be null: kernels then live in memory only. Null if there is no Hopper GPU (said on stderr). */
void* gemmd_kernels_open(const char* cache_directory);
void gemmd_kernels_close(void* kernels);

/* Starts the product on `stream` (a cudaStream_t) with the selected configuration, which is compiled first if need be,
 * and copies its description to `config`. 0 on success; else the message is on stderr. */
int gemmd_kernels_run(void* kernels, const GemmdProduct* product, void* stream, char* config, int config_size);

#ifdef __cplusplus
}
#endif

#endif /* GEMMD_TESTS_BENCH_GEMMD_KERNELS_H_ */
