// SPDX-License-Identifier: Apache-2.0
#include "server/warm_up.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include <cstdint>
#include <string>

namespace gemmd {
namespace {

absl::Status TooSmall(absl::string_view field, int64_t least, int64_t got) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": expected at least ", least, ", got ", got));
}

absl::StatusOr<PrepareShape> ToPrepareShape(const v1::WarmUpShape& shape) {
  if (!v1::WarmUpShape::Op_IsValid(shape.op()) || shape.op() == v1::WarmUpShape::OP_UNSPECIFIED) {
    return absl::InvalidArgumentError(absl::StrCat("op: expected an operation, got ", static_cast<int>(shape.op())));
  }
  if (!v1::Scaling_IsValid(shape.scaling())) return absl::InvalidArgumentError("scaling: expected a known value");
  if (!v1::DType_IsValid(shape.d_dtype())) return absl::InvalidArgumentError("d_dtype: expected a known value");
  const bool grouped = shape.op() != v1::WarmUpShape::DENSE;
  if (shape.m() < 0) return TooSmall("m", 0, shape.m());
  if (shape.n() < 1) return TooSmall("n", 1, shape.n());
  if (shape.k() < 1) return TooSmall("k", 1, shape.k());
  if (shape.groups() < (grouped ? 1 : 0)) return TooSmall("groups", grouped ? 1 : 0, shape.groups());
  if (!grouped && shape.groups() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("groups: expected 0 with DENSE, got ", shape.groups()));
  }
  const bool may_add =
      shape.d_dtype() == v1::F32 && (shape.op() == v1::WarmUpShape::DENSE || shape.op() == v1::WarmUpShape::K_GROUPED);
  if (shape.accumulate() && !may_add) {
    return absl::InvalidArgumentError("accumulate: expected false but for F32 of DENSE and K_GROUPED, got true");
  }
  PrepareShape prepare;
  // The operations of WarmUpShape have the numbers of gemmd::Op.
  prepare.op = static_cast<Op>(shape.op());
  prepare.scaling = static_cast<Scaling>(shape.scaling());
  prepare.d_dtype = static_cast<DType>(shape.d_dtype());
  prepare.accumulate = shape.accumulate();
  prepare.m = shape.m();
  prepare.n = shape.n();
  prepare.k = shape.k();
  prepare.groups = shape.groups();
  return prepare;
}
static_assert(static_cast<int>(Op::kDense) == v1::WarmUpShape::DENSE &&
              static_cast<int>(Op::kMGroupedContiguous) == v1::WarmUpShape::M_GROUPED_CONTIGUOUS &&
              static_cast<int>(Op::kMGroupedMasked) == v1::WarmUpShape::M_GROUPED_MASKED &&
              static_cast<int>(Op::kKGrouped) == v1::WarmUpShape::K_GROUPED);

}  // namespace

absl::StatusOr<std::vector<PrepareShape>> ToPrepareShapes(const v1::WarmUpRequest& request) {
  if (request.shapes_size() > kMaxWarmUpShapes) {
    return absl::InvalidArgumentError(
        absl::StrCat("shapes: expected at most ", kMaxWarmUpShapes, ", got ", request.shapes_size()));
  }
  std::vector<PrepareShape> shapes;
  for (int i = 0; i < request.shapes_size(); ++i) {
    const absl::StatusOr<PrepareShape> shape = ToPrepareShape(request.shapes(i));
    if (!shape.ok()) return absl::InvalidArgumentError(absl::StrCat("shapes[", i, "].", shape.status().message()));
    shapes.push_back(*shape);
  }
  return shapes;
}

}  // namespace gemmd
