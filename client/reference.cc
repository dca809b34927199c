// SPDX-License-Identifier: Apache-2.0
#include "client/reference.h"

#include "client/parallel.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <random>

namespace gemmd::reference {
namespace {

int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Largest share of elements that may be rounded to the other neighbour.
constexpr int64_t kBoundaryShare = 1000;
constexpr double kScaleTolerance = 1e-6;

// Every index, or `count` of `extent`: one at random from each of equal stretches, with the two ends.
std::vector<int64_t> Stratified(int64_t extent, int64_t count, std::mt19937_64& random) {
  std::vector<int64_t> chosen;
  if (count >= extent) return chosen;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = extent * i / count;
    const int64_t end = std::max(begin + 1, extent * (i + 1) / count);
    chosen.push_back(std::uniform_int_distribution<int64_t>(begin, end - 1)(random));
  }
  chosen.front() = 0;
  chosen.back() = extent - 1;
  return chosen;
}

int64_t CountOf(absl::Span<const int64_t> chosen, int64_t extent) {
  return chosen.empty() ? extent : static_cast<int64_t>(chosen.size());
}

int64_t IndexOf(absl::Span<const int64_t> chosen, int64_t i) {
  return chosen.empty() ? i : chosen[static_cast<size_t>(i)];
}

// Four sums at once, so that the compiler can use vector registers without reordering one sum.
double Dot(const double* x, const double* y, int64_t count) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int lane = 0; lane < 4; ++lane) sums[lane] += x[i + lane] * y[i + lane];
  }
  for (; i < count; ++i) sums[0] += x[i] * y[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Scales of group `group` of a stack of [groups * rows] rows.
Matrix GroupScales(const Scaled& stack, int64_t group, int64_t rows) {
  if (stack.sf.data == nullptr) return {};
  const int64_t sf_rows = CeilDiv(rows, stack.sf_rows);
  return stack.sf.Window(group * sf_rows, sf_rows, 0, stack.sf.columns);
}

// Group `group` of a stack [groups * rows, K].
Scaled GroupOf(const Scaled& stack, int64_t group, int64_t rows) {
  return {stack.values.Window(group * rows, rows, 0, stack.values.columns), GroupScales(stack, group, rows),
          stack.sf_rows};
}

// Rows of an operand with one scale per row.
Scaled RowsOf(const Scaled& operand, int64_t begin, int64_t count) {
  Scaled window = operand;
  window.values = operand.values.Window(begin, count, 0, operand.values.columns);
  if (operand.sf.data != nullptr) window.sf = operand.sf.Window(begin, count, 0, operand.sf.columns);
  return window;
}

std::vector<double> SampleOfD(const Product& product, const Sample& sample) {
  const int64_t rows = CountOf(sample.rows, product.d.rows);
  const int64_t columns = CountOf(sample.columns, product.d.columns);
  std::vector<double> values(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      values[static_cast<size_t>(i * columns + j)] = product.d.At(IndexOf(sample.rows, i), IndexOf(sample.columns, j));
    }
  }
  return values;
}

// Position of an e4m3 number in the order of values, so that neighbours differ by one; both zeros are 0.
int E4m3Rank(uint8_t bits) { return (bits & 0x80) != 0 ? -(bits & 0x7f) : bits & 0x7f; }

}  // namespace

double Matrix::At(int64_t row, int64_t column) const {
  const int64_t i = row * row_stride + column * column_stride;
  switch (dtype) {
    case DType::kE4m3:
      return static_cast<double>(E4m3ToFloat(static_cast<const uint8_t*>(data)[i]));
    case DType::kBf16:
      return static_cast<double>(Bf16ToFloat(static_cast<const uint16_t*>(data)[i]));
    case DType::kF32:
      return static_cast<double>(static_cast<const float*>(data)[i]);
    case DType::kI32:
      return static_cast<double>(static_cast<const int32_t*>(data)[i]);
    case DType::kI64:
      return static_cast<double>(static_cast<const int64_t*>(data)[i]);
    case DType::kU8:
      return static_cast<double>(static_cast<const uint8_t*>(data)[i]);
    case DType::kNone:
      break;
  }
  std::abort();
}

Matrix Matrix::Window(int64_t row, int64_t row_count, int64_t column, int64_t column_count) const {
  Matrix window = *this;
  window.data = static_cast<const std::byte*>(data) + (row * row_stride + column * column_stride) * ByteSize(dtype);
  window.rows = row_count;
  window.columns = column_count;
  return window;
}

Matrix RowMajor(const void* data, DType dtype, int64_t rows, int64_t columns) {
  return {data, dtype, rows, columns, columns, 1};
}

Matrix ColumnMajor(const void* data, DType dtype, int64_t rows, int64_t columns, int64_t pitch) {
  return {data, dtype, rows, columns, 1, pitch};
}

std::vector<Product> ContiguousProducts(const Scaled& a, const Scaled& b, const Matrix& d, int64_t groups,
                                        absl::Span<const int64_t> row_group) {
  std::vector<Product> products;
  const auto m = static_cast<int64_t>(row_group.size());
  const int64_t n = groups == 0 ? 0 : b.values.rows / groups;
  for (int64_t begin = 0; begin < m;) {
    const int64_t group = row_group[static_cast<size_t>(begin)];
    int64_t end = begin + 1;
    while (end < m && row_group[static_cast<size_t>(end)] == group) ++end;
    if (group >= 0) {
      products.push_back(
          {RowsOf(a, begin, end - begin), GroupOf(b, group, n), {}, d.Window(begin, end - begin, 0, d.columns)});
    }
    begin = end;
  }
  return products;
}

std::vector<int64_t> RowGroupsFromOffsets(absl::Span<const int64_t> offsets, int64_t m) {
  std::vector<int64_t> row_group(static_cast<size_t>(m), -1);
  for (size_t group = 0; group + 1 < offsets.size(); ++group) {
    for (int64_t row = offsets[group]; row < offsets[group + 1]; ++row) {
      row_group[static_cast<size_t>(row)] = static_cast<int64_t>(group);
    }
  }
  return row_group;
}

std::vector<int64_t> RowGroupsFromAlignedEnds(absl::Span<const int64_t> ends, int64_t alignment, int64_t m) {
  std::vector<int64_t> row_group(static_cast<size_t>(m), -1);
  int64_t begin = 0;
  for (size_t group = 0; group < ends.size(); ++group) {
    for (int64_t row = begin; row < ends[group]; ++row) {
      row_group[static_cast<size_t>(row)] = static_cast<int64_t>(group);
    }
    begin = CeilDiv(ends[group], alignment) * alignment;
  }
  return row_group;
}

std::vector<Product> MaskedProducts(const Scaled& a, const Scaled& b, const Matrix& d,
                                    absl::Span<const int64_t> masked_m) {
  std::vector<Product> products;
  const auto groups = static_cast<int64_t>(masked_m.size());
  if (groups == 0) return products;
  const int64_t m_max = a.values.rows / groups;
  const int64_t n = b.values.rows / groups;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t rows = masked_m[static_cast<size_t>(group)];
    if (rows == 0) continue;
    products.push_back(
        {RowsOf(a, group * m_max, rows), GroupOf(b, group, n), {}, d.Window(group * m_max, rows, 0, d.columns)});
  }
  return products;
}

std::vector<Product> KGroupedProducts(const KGroupedOperands& operands, absl::Span<const int64_t> ks) {
  const auto flat = [&](const void* base, int64_t element, int64_t rows, int64_t k) {
    return RowMajor(static_cast<const std::byte*>(base) + element * ByteSize(operands.dtype), operands.dtype, rows, k);
  };
  std::vector<Product> products;
  int64_t k_begin = 0;
  int64_t sf_begin = 0;
  for (size_t group = 0; group < ks.size(); ++group) {
    const int64_t k = ks[group];
    const int64_t sf_columns = CeilDiv(k, kScaleBlock);
    const int64_t d_row = static_cast<int64_t>(group) * operands.m;
    Product product;
    product.a.values = flat(operands.a, operands.m * k_begin, operands.m, k);
    product.b.values = flat(operands.b, operands.n * k_begin, operands.n, k);
    if (operands.sfa.data != nullptr) {
      product.a.sf = operands.sfa.Window(0, operands.m, sf_begin, sf_columns);
      product.b.sf = operands.sfb.Window(0, operands.n, sf_begin, sf_columns);
    }
    if (operands.c.data != nullptr) product.c = operands.c.Window(d_row, operands.m, 0, operands.n);
    product.d = operands.d.Window(d_row, operands.m, 0, operands.n);
    products.push_back(product);
    k_begin += k;
    sf_begin += sf_columns;
  }
  return products;
}

Sample ChooseSample(const Product& product, double max_products, uint64_t seed) {
  const int64_t m = product.a.values.rows;
  const int64_t n = product.b.values.rows;
  const auto k = static_cast<double>(std::max<int64_t>(product.a.values.columns, 1));
  if (static_cast<double>(m) * static_cast<double>(n) * k <= max_products) return {};
  // As square as D allows: a row costs its dequantization too, and defects lie along tiles of both dimensions.
  const double elements = std::max(4.0, max_products / k);
  const int64_t rows = std::min(m, std::max<int64_t>(2, std::llround(std::sqrt(elements) / 2)));
  const int64_t columns = std::max<int64_t>(2, std::llround(elements / static_cast<double>(rows)));
  std::mt19937_64 random(seed);
  Sample sample;
  sample.rows = Stratified(m, rows, random);
  sample.columns = Stratified(n, columns, random);
  return sample;
}

std::vector<double> Dequantize(const Scaled& operand, absl::Span<const int64_t> rows) {
  const int64_t count = CountOf(rows, operand.values.rows);
  const int64_t columns = operand.values.columns;
  std::vector<double> result(static_cast<size_t>(count * columns));
  ParallelFor(count, [&](int64_t i) {
    const int64_t row = IndexOf(rows, i);
    double* out = result.data() + i * columns;
    for (int64_t k = 0; k < columns; ++k) out[k] = operand.values.At(row, k);
    if (operand.sf.data == nullptr) return;
    for (int64_t k = 0; k < columns; ++k) out[k] *= operand.sf.At(row / operand.sf_rows, k / kScaleBlock);
  });
  return result;
}

std::vector<double> Multiply(const Product& product, const Sample& sample) {
  const int64_t k = product.a.values.columns;
  const std::vector<double> a = Dequantize(product.a, sample.rows);
  const std::vector<double> b = Dequantize(product.b, sample.columns);
  const int64_t rows = CountOf(sample.rows, product.a.values.rows);
  const int64_t columns = CountOf(sample.columns, product.b.values.rows);
  std::vector<double> d(static_cast<size_t>(rows * columns));
  ParallelFor(columns, [&](int64_t j) {
    for (int64_t i = 0; i < rows; ++i) {
      double sum = Dot(a.data() + i * k, b.data() + j * k, k);
      if (product.c.data != nullptr) sum += product.c.At(IndexOf(sample.rows, i), IndexOf(sample.columns, j));
      d[static_cast<size_t>(i * columns + j)] = sum;
    }
  });
  return d;
}

void ErrorSums::Add(absl::Span<const double> expected, absl::Span<const double> actual) {
  if (expected.size() != actual.size()) std::abort();
  for (size_t i = 0; i < expected.size(); ++i) {
    ++elements_;
    if (!std::isfinite(actual[i])) {
      ++non_finite_;
      continue;
    }
    const double error = std::fabs(actual[i] - expected[i]);
    squared_error_ += error * error;
    squared_expected_ += expected[i] * expected[i];
    squared_actual_ += actual[i] * actual[i];
    cross_ += expected[i] * actual[i];
    max_error_ = std::max(max_error_, error);
  }
}

void ErrorSums::Merge(const ErrorSums& other) {
  squared_error_ += other.squared_error_;
  squared_expected_ += other.squared_expected_;
  squared_actual_ += other.squared_actual_;
  cross_ += other.cross_;
  max_error_ = std::max(max_error_, other.max_error_);
  elements_ += other.elements_;
  non_finite_ += other.non_finite_;
}

Error ErrorSums::Get() const {
  Error error;
  error.elements = elements_;
  error.non_finite = non_finite_;
  if (squared_error_ == 0) return error;
  const int64_t finite = elements_ - non_finite_;
  const double rms = std::sqrt(squared_expected_ / static_cast<double>(finite));
  error.relative_frobenius = std::sqrt(squared_error_ / squared_expected_);
  error.max_over_rms = max_error_ / rms;
  error.difference = 1 - 2 * cross_ / (squared_expected_ + squared_actual_);
  return error;
}

Limits LimitsFor(DType d_dtype) {
  if (d_dtype == DType::kF32) return {2e-4, 0.005};
  return {2e-3, 0.04};
}

absl::Status CheckLimits(const Error& error, const Limits& limits) {
  if (error.non_finite != 0) {
    return absl::DataLossError(absl::StrCat("result: expected finite elements, got ", error.non_finite, " of ",
                                            error.elements, " that are not"));
  }
  if (!(error.relative_frobenius <= limits.relative_frobenius)) {
    return absl::DataLossError(absl::StrCat("relative Frobenius error: expected at most ", limits.relative_frobenius,
                                            ", got ", error.relative_frobenius));
  }
  if (!(error.max_over_rms <= limits.max_over_rms)) {
    return absl::DataLossError(absl::StrCat("largest element error over the RMS: expected at most ",
                                            limits.max_over_rms, ", got ", error.max_over_rms));
  }
  return absl::OkStatus();
}

Error CheckProducts(absl::Span<const Product> products, double max_products, uint64_t seed) {
  ErrorSums sums;
  for (size_t i = 0; i < products.size(); ++i) {
    const double share = max_products / static_cast<double>(products.size());
    const Sample sample = ChooseSample(products[i], share, seed + i);
    sums.Add(Multiply(products[i], sample), SampleOfD(products[i], sample));
  }
  return sums.Get();
}

Quantized Quantize(const Matrix& x, QuantizeBlock block) {
  const int64_t block_rows = block == QuantizeBlock::k128x128 ? kScaleBlock : 1;
  const int64_t sf_rows = CeilDiv(x.rows, block_rows);
  const int64_t sf_columns = CeilDiv(x.columns, kScaleBlock);
  Quantized result;
  result.q.resize(static_cast<size_t>(x.rows * x.columns));
  result.sf.resize(static_cast<size_t>(sf_rows * sf_columns));
  ParallelFor(sf_rows * sf_columns, [&](int64_t index) {
    const int64_t row_begin = index / sf_columns * block_rows;
    const int64_t row_end = std::min(x.rows, row_begin + block_rows);
    const int64_t column_begin = index % sf_columns * kScaleBlock;
    const int64_t column_end = std::min(x.columns, column_begin + kScaleBlock);
    float amax = 0;
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t k = column_begin; k < column_end; ++k) {
        amax = std::max(amax, std::fabs(static_cast<float>(x.At(row, k))));
      }
    }
    const float quotient = amax / kE4m3Max;
    const float sf = quotient == 0 ? 1.0f : quotient;  // Zeros, and what underflows.
    result.sf[static_cast<size_t>(index)] = sf;
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t k = column_begin; k < column_end; ++k) {
        result.q[static_cast<size_t>(row * x.columns + k)] = FloatToE4m3(static_cast<float>(x.At(row, k)) / sf);
      }
    }
  });
  return result;
}

absl::Status CheckQuantized(const Matrix& x, QuantizeBlock block, const Matrix& q, const Matrix& sf) {
  const Quantized expected = Quantize(x, block);
  for (int64_t i = 0; i < sf.rows * sf.columns; ++i) {
    const auto want = static_cast<double>(expected.sf[static_cast<size_t>(i)]);
    const double got = sf.At(i / sf.columns, i % sf.columns);
    if (!(std::fabs(got - want) <= kScaleTolerance * want)) {
      return absl::DataLossError(absl::StrCat("sf[", i, "]: expected ", want, ", got ", got));
    }
  }
  int64_t on_boundary = 0;
  for (int64_t i = 0; i < q.rows * q.columns; ++i) {
    const uint8_t want = expected.q[static_cast<size_t>(i)];
    const uint8_t got = static_cast<const uint8_t*>(q.data)[i / q.columns * q.row_stride + i % q.columns];
    const int distance = std::abs(E4m3Rank(want) - E4m3Rank(got));
    on_boundary += distance;
    if (distance > 1 || on_boundary * kBoundaryShare > q.rows * q.columns + kBoundaryShare) {
      return absl::DataLossError(absl::StrCat("q[", i, "]: expected ", E4m3ToFloat(want), ", got ", E4m3ToFloat(got)));
    }
  }
  return absl::OkStatus();
}

}  // namespace gemmd::reference
