// SPDX-License-Identifier: Apache-2.0
// Element types of tensors as they cross process boundaries (proto enum DType, ring descriptors), and the exact
// conversions that define the 8- and 16-bit floats. Used by every folder; pure functions.
#ifndef GEMMD_PROTO_ELEMENT_TYPE_H_
#define GEMMD_PROTO_ELEMENT_TYPE_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include <cstdint>

namespace gemmd {

// Same numbers as gemmd.v1.DType.
enum class DType : uint8_t { kNone = 0, kE4m3 = 1, kBf16 = 2, kF32 = 3, kI32 = 4, kI64 = 5, kU8 = 6 };

// Bytes of one element; 0 for kNone or a value outside the enum.
constexpr int64_t ByteSize(DType dtype) {
  switch (dtype) {
    case DType::kE4m3:
    case DType::kU8:
      return 1;
    case DType::kBf16:
      return 2;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
    case DType::kNone:
      break;
  }
  return 0;
}

// Bytes of an array of this shape. Errors: INVALID_ARGUMENT (negative extent, or more than 2^62 bytes).
absl::StatusOr<int64_t> ByteSizeOf(DType dtype, absl::Span<const int64_t> shape);

// "e4m3", "bf16", ...; "none" for kNone, "invalid" for a value outside the enum.
absl::string_view Name(DType dtype);

// Largest finite e4m3 magnitude (OCP 8-bit floating point specification, E4M3: S.1111.110).
inline constexpr float kE4m3Max = 448.0f;

// Value of an e4m3 bit pattern; 0x7f and 0xff are NaN.
float E4m3ToFloat(uint8_t bits);

// Nearest e4m3, ties to even, saturating at +-448 (infinities included); NaN stays NaN.
uint8_t FloatToE4m3(float value);

// Exact.
float Bf16ToFloat(uint16_t bits);

// Nearest bfloat16, ties to even; overflow gives infinity; NaN stays a quiet NaN.
uint16_t FloatToBf16(float value);

}  // namespace gemmd

#endif  // GEMMD_PROTO_ELEMENT_TYPE_H_
