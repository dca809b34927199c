// SPDX-License-Identifier: Apache-2.0
#include "proto/element_type.h"

#include "absl/strings/str_cat.h"

#include <array>
#include <bit>
#include <cmath>

namespace gemmd {
namespace {

std::array<float, 256> MakeE4m3Table() {
  std::array<float, 256> table{};
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = (bits >> 3) & 0xf;
    const int mantissa = bits & 0x7;
    float magnitude = 0.0f;
    if (exponent == 0xf && mantissa == 0x7) {
      magnitude = std::nanf("");
    } else if (exponent == 0) {
      magnitude = std::ldexp(static_cast<float>(mantissa), -9);  // Subnormal: mantissa/8 * 2^-6.
    } else {
      magnitude = std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);  // (1 + mantissa/8) * 2^(exponent-7).
    }
    table[static_cast<size_t>(bits)] = (bits & 0x80) != 0 ? -magnitude : magnitude;
  }
  return table;
}

// Of a stored array: so that sizes and offsets of files can be added without overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 62;

}  // namespace

absl::StatusOr<int64_t> ByteSizeOf(DType dtype, absl::Span<const int64_t> shape) {
  int64_t bytes = ByteSize(dtype);
  bool empty = false;
  for (const int64_t extent : shape) {
    if (extent < 0)
      return absl::InvalidArgumentError(absl::StrCat("shape: expected extents of at least 0, got ", extent));
    if (extent == 0) {
      empty = true;
      continue;
    }
    if (bytes > kMaxBytes / extent) return absl::InvalidArgumentError("shape: expected at most 2^62 bytes, got more");
    bytes *= extent;
  }
  return empty ? 0 : bytes;
}

absl::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kNone:
      return "none";
    case DType::kE4m3:
      return "e4m3";
    case DType::kBf16:
      return "bf16";
    case DType::kF32:
      return "f32";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
  }
  return "invalid";
}

float E4m3ToFloat(uint8_t bits) {
  static const std::array<float, 256> table = MakeE4m3Table();
  return table[bits];
}

uint8_t FloatToE4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint8_t>(sign | 0x7f);
  if (magnitude >= kE4m3Max) return static_cast<uint8_t>(sign | 0x7e);
  if (magnitude < 0x1p-6f) {
    // Subnormal range: the grid is 2^-9. Adding 1.5 * 2^14 puts that grid at the last bit of the sum's mantissa, so the
    // addition itself rounds to nearest even. Rounding up to 8 gives the smallest normal's bits, as it should.
    const float shifted = magnitude + 0x1.8p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0xf));
  }
  // Normal range: keep 3 mantissa bits of 23, round half to even, rebias the exponent from 127 to 7.
  uint32_t magnitude_bits = bits & 0x7fffffff;
  magnitude_bits += 0x7ffff + ((magnitude_bits >> 20) & 1);
  const uint32_t rounded = (magnitude_bits >> 20) - (120u << 3);
  return static_cast<uint8_t>(sign | (rounded > 0x7e ? 0x7e : rounded));
}

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace gemmd
