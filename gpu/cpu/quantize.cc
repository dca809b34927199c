// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/quantize.h"

#include "gpu/cpu/dequantize.h"
#include "proto/job.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gemmd {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000;

// Magnitudes order like their bits, NaN last, so the largest is an integer maximum, which vectorizes.
[[gnu::always_inline]] inline uint32_t AmaxLoop(const float* x, int64_t count) {
  uint32_t amax = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffff;
    const uint32_t number = magnitude <= kInfinityBits ? magnitude : 0;
    amax = amax > number ? amax : number;
  }
  return amax;
}

// FloatToE4m3 of proto/element_type.cc without branches.
[[gnu::always_inline]] inline void QuantizeLoop(const float* x, int64_t count, float sf, uint8_t* q) {
  constexpr uint32_t kSmallestNormal = std::bit_cast<uint32_t>(0x1p-6f);
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(x[i] / sf);
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1.8p14f) & 0xf;
    uint32_t normal = ((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120u << 3);
    normal = normal < 0x7e ? normal : 0x7e;
    uint32_t result = magnitude < kSmallestNormal ? subnormal : normal;
    result = magnitude > kInfinityBits ? 0x7f : result;
    q[i] = static_cast<uint8_t>(((bits >> 24) & 0x80) | result);
  }
}

#if defined(__x86_64__)
GEMMD_TARGET_AVX2 uint32_t AmaxAvx2(const float* x, int64_t count) { return AmaxLoop(x, count); }
GEMMD_TARGET_AVX512 uint32_t AmaxAvx512(const float* x, int64_t count) { return AmaxLoop(x, count); }
GEMMD_TARGET_AVX2 void QuantizeAvx2(const float* x, int64_t count, float sf, uint8_t* q) {
  QuantizeLoop(x, count, sf, q);
}
GEMMD_TARGET_AVX512 void QuantizeAvx512(const float* x, int64_t count, float sf, uint8_t* q) {
  QuantizeLoop(x, count, sf, q);
}
#endif

uint32_t Amax(InstructionSet set, const float* x, int64_t count) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return AmaxAvx512(x, count);
  if (set == InstructionSet::kAvx2) return AmaxAvx2(x, count);
#endif
  return AmaxLoop(x, count);
}

void QuantizeRun(InstructionSet set, const float* x, int64_t count, float sf, uint8_t* q) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return QuantizeAvx512(x, count, sf, q);
  if (set == InstructionSet::kAvx2) return QuantizeAvx2(x, count, sf, q);
#endif
  QuantizeLoop(x, count, sf, q);
}

// Up to 128 elements of a row as float; `buffer` is used for BF16.
const float* LoadRun(InstructionSet set, const HostMatrix& x, int64_t row, int64_t k, int64_t count, float* buffer) {
  const std::byte* in = x.At(row, k);
  if (x.dtype == DType::kF32) return reinterpret_cast<const float*>(in);
  WidenBf16(set, reinterpret_cast<const uint16_t*>(in), count, buffer);
  return buffer;
}

}  // namespace

void QuantizeBlockRow(InstructionSet set, const QuantizeViews& views, int64_t sf_row) {
  const int64_t row_begin = sf_row * views.block_rows;
  const int64_t row_end = std::min(row_begin + views.block_rows, views.x.rows);
  float buffer[kScaleBlock];
  for (int64_t k = 0; k < views.x.columns; k += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, views.x.columns - k);
    uint32_t amax = 0;
    for (int64_t row = row_begin; row < row_end; ++row) {
      amax = std::max(amax, Amax(set, LoadRun(set, views.x, row, k, count, buffer), count));
    }
    float sf = std::bit_cast<float>(amax) / kE4m3Max;
    if (sf == 0.0f) sf = 1.0f;
    std::memcpy(views.sf.At(sf_row, k / kScaleBlock), &sf, sizeof(sf));
    for (int64_t row = row_begin; row < row_end; ++row) {
      const float* x = LoadRun(set, views.x, row, k, count, buffer);
      QuantizeRun(set, x, count, sf, reinterpret_cast<uint8_t*>(views.q.At(row, k)));
    }
  }
}

}  // namespace gemmd
