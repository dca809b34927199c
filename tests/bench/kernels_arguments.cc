// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/kernels_arguments.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include <limits>
#include <string>

namespace gemmd {
namespace {

constexpr int64_t kMaxExtent = std::numeric_limits<int>::max();
constexpr int64_t kMaxStride = int64_t{1} << 38;  // TMA takes strides below 2^40 bytes.
constexpr int64_t kTmaBytes = 16;                 // And addresses and strides that are multiples of this.
// The kernels count the rows of one tile's scales, 256 at most, in 32 bits.
constexpr int64_t kMaxScaleRowStride = kMaxExtent / 256;

enum Scaling { kRowBlock = 0, kRowRow = 1, kBf16 = 2 };

// Keeps the first mistake. Names are put together only for a message.
class Arguments {
 public:
  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  void Refuse(absl::string_view field, absl::string_view expected, const absl::AlphaNum& got) {
    status_.Update(absl::InvalidArgumentError(absl::StrCat(field, ": expected ", expected, ", got ", got)));
  }

  void InRange(absl::string_view owner, absl::string_view field, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      Refuse(absl::StrCat(owner, field), absl::StrCat("from ", least, " to ", most), value);
  }

  void Same(absl::string_view field, int64_t value, absl::string_view other, int64_t expected) {
    if (value != expected) Refuse(field, absl::StrCat(expected, " as ", other), value);
  }

  void Address(absl::string_view owner, absl::string_view field, const void* data, int64_t multiple) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    if (data == nullptr || address % static_cast<uintptr_t>(multiple) != 0) {
      Refuse(absl::StrCat(owner, field), absl::StrCat("an address on ", multiple, " bytes"),
             absl::StrCat("0x", absl::Hex(address)));
    }
  }

  void Stride(absl::string_view owner, absl::string_view field, int64_t stride, int64_t least, int64_t element) {
    InRange(owner, field, stride, least, kMaxStride);
    if (ok() && stride * element % kTmaBytes != 0) {
      Refuse(absl::StrCat(owner, field), absl::StrCat("a multiple of ", kTmaBytes, " bytes"),
             absl::StrCat(stride, " elements of ", element));
    }
  }

  void Matrix(absl::string_view name, const GemmdMatrix& m, int64_t element) {
    InRange(name, ".batches", m.batches, 0, kMaxExtent);
    InRange(name, ".rows", m.rows, 0, kMaxExtent);
    InRange(name, ".columns", m.columns, 0, kMaxExtent);
    if (m.batches == 0 || m.rows == 0 || m.columns == 0) return;
    Address(name, ".data", m.data, kTmaBytes);
    Stride(name, ".row_stride", m.row_stride, m.columns, element);
    if (m.batches > 1) Stride(name, ".batch_stride", m.batch_stride, 0, element);
  }

  void Scales(absl::string_view name, const GemmdScales& s) {
    Address(name, ".data", s.data, sizeof(float));
    InRange(name, ".batch_stride", s.batch_stride, 0, kMaxStride);
    InRange(name, ".row_stride", s.row_stride, 0, kMaxScaleRowStride);
    InRange(name, ".block_stride", s.block_stride, 0, kMaxStride);
  }

 private:
  absl::Status status_;
};

// All but which rows there are.
void CheckOperands(const GemmdProduct& p, Arguments& arguments) {
  arguments.InRange("", "scaling", p.scaling, kRowBlock, kBf16);
  arguments.InRange("", "output", p.output, 0, 2);
  const int64_t element = p.scaling == kBf16 ? 2 : 1;
  arguments.Matrix("a", p.a, element);
  arguments.Matrix("b", p.b, element);
  arguments.Matrix("d", p.d, p.output == 0 ? 2 : 4);
  arguments.Same("b.columns", p.b.columns, "a.columns", p.a.columns);
  arguments.Same("d.batches", p.d.batches, "a.batches", p.a.batches);
  arguments.Same("d.rows", p.d.rows, "a.rows", p.a.rows);
  arguments.Same("d.columns", p.d.columns, "b.rows", p.b.rows);
  if (p.scaling == kBf16 || p.a.rows == 0 || p.a.columns == 0 || p.b.rows == 0) return;
  arguments.Scales("sfa", p.sfa);
  arguments.Scales("sfb", p.sfb);
}

void CheckSegment(const GemmdProduct& p, int index, Arguments& arguments) {
  const GemmdSegment& s = p.segments[index];
  const bool fits = s.batch >= 0 && s.batch < p.a.batches && s.group >= 0 && s.group < p.b.batches &&
                    s.row_begin >= 0 && s.row_begin <= s.row_end && s.row_end <= p.a.rows;
  if (fits) return;
  const std::string owner = absl::StrCat("segments[", index, "]");
  arguments.InRange(owner, ".batch", s.batch, 0, p.a.batches - 1);
  arguments.InRange(owner, ".group", s.group, 0, p.b.batches - 1);
  arguments.InRange(owner, ".row_begin", s.row_begin, 0, p.a.rows);
  arguments.InRange(owner, ".row_end", s.row_end, s.row_begin, p.a.rows);
}

}  // namespace

absl::Status CheckProduct(const GemmdProduct* product) {
  if (product == nullptr) return absl::InvalidArgumentError("product: expected one, got null");
  Arguments arguments;
  CheckOperands(*product, arguments);
  arguments.InRange("", "segment_count", product->segment_count, 0, product->segments != nullptr ? kMaxExtent : 0);
  if (product->segments == nullptr) {
    arguments.Same("a.batches", product->a.batches, "a product without segments has", 1);
    arguments.Same("b.batches", product->b.batches, "a product without segments has", 1);
  }
  for (int i = 0; i < product->segment_count && arguments.ok(); ++i) CheckSegment(*product, i, arguments);
  return arguments.status();
}

absl::Status CheckMaskedProduct(const GemmdProduct* product, const int32_t* masked_m, const int32_t* rows) {
  if (product == nullptr) return absl::InvalidArgumentError("product: expected one, got null");
  Arguments arguments;
  if (product->segments != nullptr) arguments.Refuse("segments", "null, masked_m says which rows there are", "some");
  CheckOperands(*product, arguments);
  arguments.Same("b.batches", product->b.batches, "a.batches", product->a.batches);
  if (product->a.batches == 0) return arguments.status();
  arguments.Address("", "masked_m", masked_m, sizeof(int32_t));
  arguments.Address("", "rows", rows, sizeof(int32_t));
  return arguments.status();
}

absl::Status CheckKGroupedProduct(const GemmdKGroupedProduct* product) {
  if (product == nullptr) return absl::InvalidArgumentError("product: expected one, got null");
  Arguments arguments;
  const GemmdKGroupedProduct& p = *product;
  arguments.InRange("", "scaling", p.scaling, kRowRow, kBf16);
  arguments.InRange("", "output", p.output, 1, 2);
  arguments.InRange("", "m", p.m, 0, kMaxExtent);
  arguments.InRange("", "n", p.n, 0, kMaxExtent);
  arguments.InRange("", "groups", p.groups, 0, kMaxExtent);
  if (p.groups > 0 && p.ks == nullptr) arguments.Refuse("ks", absl::StrCat(p.groups, " numbers"), "null");
  const int64_t element = p.scaling == kBf16 ? 2 : 1;
  int64_t k = 0;
  for (int g = 0; g < p.groups && arguments.ok(); ++g) {
    const int64_t k_of_group = p.ks[g];
    if (k_of_group < 0 || k_of_group > kMaxExtent || k_of_group * element % kTmaBytes != 0) {
      arguments.Refuse(absl::StrCat("ks[", g, "]"),
                       absl::StrCat("a multiple of ", kTmaBytes / element, " from 0 to ", kMaxExtent), k_of_group);
    }
    k += k_of_group;
  }
  arguments.Same("d.batches", p.d.batches, "groups", p.groups);
  arguments.Same("d.rows", p.d.rows, "m", p.m);
  arguments.Same("d.columns", p.d.columns, "n", p.n);
  arguments.Matrix("d", p.d, sizeof(float));
  if (p.m == 0 || p.n == 0 || k == 0) return arguments.status();
  arguments.Address("", "a", p.a, kTmaBytes);
  arguments.Address("", "b", p.b, kTmaBytes);
  if (p.scaling == kBf16) return arguments.status();
  arguments.Scales("sfa", p.sfa);
  arguments.Scales("sfb", p.sfb);
  return arguments.status();
}

absl::Status CheckQuantization(const GemmdQuantization* quantization) {
  if (quantization == nullptr) return absl::InvalidArgumentError("quantization: expected one, got null");
  Arguments arguments;
  const GemmdQuantization& q = *quantization;
  arguments.InRange("", "input", q.input, 0, 1);
  arguments.InRange("", "shape", q.shape, 0, 1);
  arguments.InRange("", "m", q.m, 0, kMaxExtent);
  arguments.InRange("", "k", q.k, 0, kMaxExtent);
  if (q.m == 0 || q.k == 0) return arguments.status();
  arguments.Address("", "x", q.x, kTmaBytes);
  arguments.Stride("", "x_row_stride", q.x_row_stride, q.k, q.input == 0 ? 2 : 4);
  arguments.Address("", "q", q.q, kTmaBytes);
  arguments.Stride("", "q_row_stride", q.q_row_stride, q.k, 1);
  arguments.Address("", "sf", q.sf, sizeof(float));
  return arguments.status();
}

}  // namespace gemmd
