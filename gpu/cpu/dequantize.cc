// SPDX-License-Identifier: Apache-2.0
#include "gpu/cpu/dequantize.h"

#include "proto/element_type.h"

#include <bit>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined registers inside its own intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace gemmd {
namespace {

// The same loops are compiled once for each instruction set; the compiler vectorizes them.
[[gnu::always_inline]] inline void WidenLoop(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(in[i]) << 16);
}

[[gnu::always_inline]] inline void NarrowLoop(const float* in, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(in[i]);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

void DequantizePortable(const uint8_t* in, int64_t count, float sf, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = E4m3ToFloat(in[i]) * sf;
}

#if defined(__x86_64__)

// e4m3 bits 0seeeemmm become the half s0eeeemmm0000000, which is the value * 2^-8 (subnormals included, and the
// conversion from half takes them at full speed). NaN gets the half's full exponent. Scaling by 2^8 is exact, and apart
// from sf so that no scale factor can overflow.
constexpr float kHalfToE4m3 = 256.0f;

GEMMD_TARGET_AVX2 void DequantizeAvx2(const uint8_t* in, int64_t count, float sf, float* out) {
  const __m256i magnitude_mask = _mm256_set1_epi16(0x7f);
  const __m256i sign_mask = _mm256_set1_epi16(static_cast<int16_t>(0x8000));
  const __m256i nan_exponent = _mm256_set1_epi16(0x7c00);
  const __m256 rescale = _mm256_set1_ps(kHalfToE4m3);
  const __m256 scale = _mm256_set1_ps(sf);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
    const __m256i magnitude = _mm256_and_si256(wide, magnitude_mask);
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, magnitude_mask), nan_exponent);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi16(wide, 8), sign_mask);
    const __m256i half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), nan);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
    const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(low, rescale), scale));
    _mm256_storeu_ps(out + i + 8, _mm256_mul_ps(_mm256_mul_ps(high, rescale), scale));
  }
  DequantizePortable(in + i, count - i, sf, out + i);
}

GEMMD_TARGET_AVX512 void DequantizeAvx512(const uint8_t* in, int64_t count, float sf, float* out) {
  const __m512i magnitude_mask = _mm512_set1_epi16(0x7f);
  const __m512i sign_mask = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
  const __m512i nan_exponent = _mm512_set1_epi16(0x7c00);
  const __m512 rescale = _mm512_set1_ps(kHalfToE4m3);
  const __m512 scale = _mm512_set1_ps(sf);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
    const __m512i magnitude = _mm512_and_si512(wide, magnitude_mask);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, magnitude_mask);
    const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(wide, 8), sign_mask);
    __m512i half = _mm512_or_si512(_mm512_slli_epi16(magnitude, 7), sign);
    half = _mm512_mask_blend_epi16(nan, half, _mm512_or_si512(half, nan_exponent));
    const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
    _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_mul_ps(low, rescale), scale));
    _mm512_storeu_ps(out + i + 16, _mm512_mul_ps(_mm512_mul_ps(high, rescale), scale));
  }
  DequantizePortable(in + i, count - i, sf, out + i);
}

GEMMD_TARGET_AVX2 void WidenAvx2(const uint16_t* in, int64_t count, float* out) { WidenLoop(in, count, out); }
GEMMD_TARGET_AVX512 void WidenAvx512(const uint16_t* in, int64_t count, float* out) { WidenLoop(in, count, out); }
GEMMD_TARGET_AVX2 void NarrowAvx2(const float* in, int64_t count, uint16_t* out) { NarrowLoop(in, count, out); }
GEMMD_TARGET_AVX512 void NarrowAvx512(const float* in, int64_t count, uint16_t* out) { NarrowLoop(in, count, out); }

#endif

}  // namespace

void DequantizeE4m3(InstructionSet set, const uint8_t* in, int64_t count, float sf, float* out) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return DequantizeAvx512(in, count, sf, out);
  if (set == InstructionSet::kAvx2) return DequantizeAvx2(in, count, sf, out);
#endif
  DequantizePortable(in, count, sf, out);
}

void WidenBf16(InstructionSet set, const uint16_t* in, int64_t count, float* out) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return WidenAvx512(in, count, out);
  if (set == InstructionSet::kAvx2) return WidenAvx2(in, count, out);
#endif
  WidenLoop(in, count, out);
}

void NarrowToBf16(InstructionSet set, const float* in, int64_t count, uint16_t* out) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return NarrowAvx512(in, count, out);
  if (set == InstructionSet::kAvx2) return NarrowAvx2(in, count, out);
#endif
  NarrowLoop(in, count, out);
}

}  // namespace gemmd
