// SPDX-License-Identifier: Apache-2.0
#include "client/tensor_view.h"

#include <utility>

namespace gemmd {

TensorView InlineResult(DType dtype, std::vector<int64_t> shape) {
  return {.source = TensorView::Source::kInline, .dtype = dtype, .shape = std::move(shape)};
}

TensorView InRegion(uint64_t region_id, uint64_t offset, DType dtype, std::vector<int64_t> shape,
                    std::vector<int64_t> strides) {
  TensorView view{.source = TensorView::Source::kRegion, .dtype = dtype, .shape = std::move(shape)};
  view.strides = std::move(strides);
  view.id = region_id;
  view.offset = offset;
  return view;
}

TensorView Resident(uint64_t tensor_id) {
  TensorView view{.source = TensorView::Source::kResident};
  view.id = tensor_id;
  return view;
}

TensorView ResidentNamed(std::string name) {
  TensorView view{.source = TensorView::Source::kNamed};
  view.name = std::move(name);
  return view;
}

v1::DType ToProto(DType dtype) { return static_cast<v1::DType>(dtype); }
DType FromProto(v1::DType dtype) { return static_cast<DType>(dtype); }

void ToProto(const TensorView& view, v1::TensorRef* ref) {
  ref->set_dtype(ToProto(view.dtype));
  ref->mutable_shape()->Assign(view.shape.begin(), view.shape.end());
  ref->mutable_strides()->Assign(view.strides.begin(), view.strides.end());
  switch (view.source) {
    case TensorView::Source::kNone:
      break;
    case TensorView::Source::kInline:
      ref->set_inline_(view.bytes.data(), view.bytes.size());
      break;
    case TensorView::Source::kRegion:
      ref->mutable_slice()->set_region_id(view.id);
      ref->mutable_slice()->set_offset(view.offset);
      break;
    case TensorView::Source::kResident:
      ref->set_tensor_id(view.id);
      break;
    case TensorView::Source::kNamed:
      ref->set_tensor_name(view.name);
      break;
  }
}

int64_t ElementCount(absl::Span<const int64_t> shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

}  // namespace gemmd
