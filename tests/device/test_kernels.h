// SPDX-License-Identifier: Apache-2.0
// Small kernels for checking and timing on the GPU, compiled by NVRTC like the product's own: random operands, an FP64
// reference that compares element by element, and a search for bytes that nobody should have written.
#ifndef GEMMD_TESTS_DEVICE_TEST_KERNELS_H_
#define GEMMD_TESTS_DEVICE_TEST_KERNELS_H_

namespace gemmd {

inline constexpr char kTestKernels[] = R"kernel(
using uint64 = unsigned long long;

__device__ uint64 Mix(uint64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// About normal: the sum of four uniform numbers, deviation 1.
__device__ float Normal(uint64 x) {
  const uint64 r = Mix(x);
  float sum = -2.0f;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(r >> 16 * i & 0xffff) / 65536.0f;
  return sum * 1.7320508f;
}

__global__ void FillE4m3(unsigned char* data, long long count, uint64 seed) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    unsigned short packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %1;" : "=h"(packed) : "f"(Normal(i + (seed << 40)) * 120.0f));
    data[i] = static_cast<unsigned char>(packed);
  }
}

__global__ void FillBf16(unsigned short* data, long long count, uint64 seed) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    data[i] = static_cast<unsigned short>(__float_as_uint(Normal(i + (seed << 40))) >> 16);
  }
}

__global__ void FillF32(float* data, long long count, uint64 seed) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) data[i] = Normal(i + (seed << 40));
}

// Scales that differ by up to 4 from block to block.
__global__ void FillScales(float* data, long long count, uint64 seed) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    data[i] = exp2f(static_cast<float>(Mix(i + (seed << 40)) % 1000) / 1000.0f * 2.0f - 8.0f);
  }
}

__device__ double E4m3(unsigned char bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const double magnitude = exponent == 0 ? mantissa * 0.001953125 : (8 + mantissa) * exp2(static_cast<double>(exponent - 10));
  return bits & 0x80 ? -magnitude : magnitude;
}

__device__ double Bf16(unsigned short bits) { return __uint_as_float(static_cast<unsigned int>(bits) << 16); }

struct Segment { int batch, group, row_begin, row_end, k, scale_block; };

struct CheckArgs {
  const unsigned char* a; long long a_batch, a_row;
  const unsigned char* b; long long b_batch, b_row;
  const float* sfa; long long sfa_batch, sfa_row, sfa_block;
  const float* sfb; long long sfb_batch, sfb_row, sfb_block;
  const unsigned char* d; long long d_batch, d_row;
  const float* before;  // D before, for accumulation; laid out as d. Null otherwise.
  int n, sfb_rows, bf16, f32_out, row_step;
  Segment segment;
};

struct CheckResult { double error2, reference2; uint64 largest_error; uint64 bad; uint64 count; };

// One thread per element of D; every row_step-th row of the segment.
__global__ void Check(CheckArgs args, CheckResult* result) {
  const Segment s = args.segment;
  const long long rows = (s.row_end - s.row_begin + args.row_step - 1) / args.row_step;
  double error2 = 0, reference2 = 0, largest = 0;
  uint64 bad = 0, count = 0;
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < rows * args.n; i += gridDim.x * 256ll) {
    const long long row = s.row_begin + i / args.n * args.row_step;
    const long long column = i % args.n;
    double sum = 0;
    for (int k0 = 0; k0 < s.k; k0 += 128) {
      double part = 0;
      const int end = min(s.k, k0 + 128);
      if (args.bf16) {
        const unsigned short* a = reinterpret_cast<const unsigned short*>(args.a) + s.batch * args.a_batch + row * args.a_row;
        const unsigned short* b = reinterpret_cast<const unsigned short*>(args.b) + s.group * args.b_batch + column * args.b_row;
        for (int k = k0; k < end; ++k) part += Bf16(a[k]) * Bf16(b[k]);
      } else {
        const unsigned char* a = args.a + s.batch * args.a_batch + row * args.a_row;
        const unsigned char* b = args.b + s.group * args.b_batch + column * args.b_row;
        for (int k = k0; k < end; ++k) part += E4m3(a[k]) * E4m3(b[k]);
        const long long block = s.scale_block + k0 / 128;
        part *= static_cast<double>(args.sfa[s.batch * args.sfa_batch + row * args.sfa_row + block * args.sfa_block]);
        part *= static_cast<double>(
            args.sfb[s.group * args.sfb_batch + column / args.sfb_rows * args.sfb_row + block * args.sfb_block]);
      }
      sum += part;
    }
    const long long at = s.batch * args.d_batch + row * args.d_row + column;
    if (args.before != nullptr) sum += args.before[at];
    const double value = args.f32_out ? static_cast<double>(reinterpret_cast<const float*>(args.d)[at])
                                      : Bf16(reinterpret_cast<const unsigned short*>(args.d)[at]);
    ++count;
    if (!isfinite(value)) { ++bad; continue; }
    error2 += (value - sum) * (value - sum);
    reference2 += sum * sum;
    largest = fmax(largest, fabs(value - sum));
  }
  atomicAdd(&result->error2, error2);
  atomicAdd(&result->reference2, reference2);
  atomicMax(&result->largest_error, static_cast<uint64>(__double_as_longlong(largest)));
  atomicAdd(&result->bad, bad);
  atomicAdd(&result->count, count);
}

struct GuardArgs {
  const unsigned char* buffer; long long bytes, d_offset, d_batch, d_row;
  int element, n, segments; unsigned char pattern;
  const Segment* list;
  const unsigned char* before;  // What the buffer held before; null: the pattern everywhere.
};

// Counts changed bytes that belong to no segment of D. `n`: the columns that a kernel may write.
__global__ void Guard(GuardArgs args, uint64* changed) {
  uint64 bad = 0;
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.bytes; i += gridDim.x * 256ll) {
    if (args.buffer[i] == (args.before != nullptr ? args.before[i] : args.pattern)) continue;
    const long long at = (i - args.d_offset) / args.element;
    bool inside = false;
    if (i >= args.d_offset) {
      const long long batch = args.d_batch > 0 ? at / args.d_batch : 0;
      const long long rest = at - batch * args.d_batch;
      const long long row = rest / args.d_row, column = rest % args.d_row;
      for (int s = 0; s < args.segments && !inside; ++s) {
        const Segment& g = args.list[s];
        inside = g.batch == batch && row >= g.row_begin && row < g.row_end && column < args.n;
      }
    }
    bad += !inside;
  }
  if (bad) atomicAdd(changed, bad);
}

struct DifferencesArgs {
  const unsigned char* a; const unsigned char* b; long long bytes;
  // Rows of row_bytes begin d_offset bytes from the start, and end as far from the end. Bytes [skip_from, skip_to) of
  // each do not count.
  long long d_offset, row_bytes, skip_from, skip_to;
};

__global__ void Differences(DifferencesArgs args, uint64* different) {
  uint64 bad = 0;
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.bytes; i += gridDim.x * 256ll) {
    if (args.a[i] == args.b[i]) continue;
    const long long in_row = (i - args.d_offset) % args.row_bytes;
    const bool in_rows = i >= args.d_offset && i < args.bytes - args.d_offset;
    bad += !(in_rows && in_row >= args.skip_from && in_row < args.skip_to);
  }
  if (bad) atomicAdd(different, bad);
}

__global__ void Empty() {}
template <int kBytes>
struct Arguments { unsigned char bytes[kBytes]; };
__global__ void Empty1(const __grid_constant__ Arguments<1024>) {}
__global__ void Empty4(const __grid_constant__ Arguments<4000>) {}
__global__ void Empty6(const __grid_constant__ Arguments<6656>) {}
)kernel";

}  // namespace gemmd

#endif  // GEMMD_TESTS_DEVICE_TEST_KERNELS_H_
