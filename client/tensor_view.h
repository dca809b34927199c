// SPDX-License-Identifier: Apache-2.0
// Where an operand or a result is: the value type that calls take. Plain data that looks at memory it does not own; the
// daemon checks it, nothing here does.
#ifndef GEMMD_CLIENT_TENSOR_VIEW_H_
#define GEMMD_CLIENT_TENSOR_VIEW_H_

#include "gemmd/v1/types.pb.h"
#include "proto/element_type.h"

#include "absl/types/span.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {

struct TensorView {
  enum class Source { kNone, kInline, kRegion, kResident, kNamed };

  Source source = Source::kNone;
  DType dtype = DType::kNone;
  std::vector<int64_t> shape = {};         // Outermost first.
  std::vector<int64_t> strides = {};       // Elements; empty: contiguous, row-major.
  absl::Span<const std::byte> bytes = {};  // kInline. Must stay valid until the call has copied them into its request.
  uint64_t id = 0;                         // Region (kRegion) or resident tensor (kResident).
  uint64_t offset = 0;                     // kRegion: bytes from its start.
  std::string name = {};                   // kNamed.
};

// Elements that travel with the request.
template <typename T>
TensorView Inline(absl::Span<const T> elements, DType dtype, std::vector<int64_t> shape) {
  TensorView view{.source = TensorView::Source::kInline, .dtype = dtype, .shape = std::move(shape)};
  view.bytes = {reinterpret_cast<const std::byte*>(elements.data()), elements.size() * sizeof(T)};
  return view;
}

// A result that comes back with the response.
TensorView InlineResult(DType dtype, std::vector<int64_t> shape = {});

// A window on a region of this session; HostRegion::View makes the same.
TensorView InRegion(uint64_t region_id, uint64_t offset, DType dtype, std::vector<int64_t> shape,
                    std::vector<int64_t> strides = {});

// A whole resident tensor, with its own dtype and shape.
TensorView Resident(uint64_t tensor_id);
// The same by name: a shared one of this user, or one of the daemon's manifest (for which no session is needed).
TensorView ResidentNamed(std::string name);

v1::DType ToProto(DType dtype);
DType FromProto(v1::DType dtype);

// Copies inline bytes.
void ToProto(const TensorView& view, v1::TensorRef* ref);

// Elements in a tensor of this shape. Requires: extents of a tensor that exists, so that nothing overflows.
int64_t ElementCount(absl::Span<const int64_t> shape);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_TENSOR_VIEW_H_
