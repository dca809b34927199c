// SPDX-License-Identifier: Apache-2.0
// The FP64 reference: what every operation should give, computed from the dequantized operands on plain host arrays,
// and the error metrics and limits that say whether a result is right. Used by `gemmctl --check`, `gemmload --check`
// and tests. Pure functions; any thread; they use a few threads of their own while they run.
//
// A grouped operation is a list of plain products, one for each group that has rows (or each group, for k-grouped), so
// everything below speaks of one `Product`: D = A * B^T + C with A [M,K], B [N,K], C and D [M,N].
#ifndef GEMMD_CLIENT_REFERENCE_H_
#define GEMMD_CLIENT_REFERENCE_H_

#include "proto/element_type.h"
#include "proto/job.h"

#include "absl/status/status.h"
#include "absl/types/span.h"

#include <cstdint>
#include <vector>

namespace gemmd::reference {

// A strided view on host memory of dtype E4M3, BF16, F32, I32, I64 or U8. Strides count elements.
struct Matrix {
  const void* data = nullptr;
  DType dtype = DType::kNone;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;

  double At(int64_t row, int64_t column) const;
  // The window [row, row + rows) x [column, column + columns).
  Matrix Window(int64_t row, int64_t row_count, int64_t column, int64_t column_count) const;
};

// Contiguous and row-major.
Matrix RowMajor(const void* data, DType dtype, int64_t rows, int64_t columns);

// M-major: element (row, column) at data[column * pitch + row].
Matrix ColumnMajor(const void* data, DType dtype, int64_t rows, int64_t columns, int64_t pitch);

// values * sf, where one scale covers `sf_rows` rows (1 or 128) and 128 columns. No scales if sf.data is null.
struct Scaled {
  Matrix values;
  Matrix sf;
  int64_t sf_rows = 1;
};

struct Product {
  Scaled a;
  Scaled b;
  Matrix c;  // Added; none if data is null.
  Matrix d;  // The result to check.
};

// Products of an m-grouped operation with contiguous rows: `row_group[i]` is the group of row i, or -1 for padding.
// `b` has all groups' rows below each other: [G*N, K], and `b.sf` [G*ceil(N/128), ceil(K/128)].
std::vector<Product> ContiguousProducts(const Scaled& a, const Scaled& b, const Matrix& d, int64_t groups,
                                        absl::Span<const int64_t> row_group);

// The group of each of `m` rows, from each of the encodings that gemmd.v1.RowGroups takes.
std::vector<int64_t> RowGroupsFromOffsets(absl::Span<const int64_t> offsets, int64_t m);
std::vector<int64_t> RowGroupsFromAlignedEnds(absl::Span<const int64_t> ends, int64_t alignment, int64_t m);

// Products of an m-grouped masked operation. `a` is [G*M_max, K], `d` [G*M_max, N], `b` as above.
std::vector<Product> MaskedProducts(const Scaled& a, const Scaled& b, const Matrix& d,
                                    absl::Span<const int64_t> masked_m);

// Operands of a k-grouped operation: flat `a` and `b`, scales [M, sum(ceil(K_g/128))] and [N, ...] (data null: BF16),
// `c` (or null data) and `d` [G*M, N].
struct KGroupedOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  DType dtype = DType::kNone;
  Matrix sfa;
  Matrix sfb;
  Matrix c;
  Matrix d;
  int64_t m = 0;
  int64_t n = 0;
};
std::vector<Product> KGroupedProducts(const KGroupedOperands& operands, absl::Span<const int64_t> ks);

// Which elements of a product are computed. Empty lists stand for all rows or columns.
struct Sample {
  std::vector<int64_t> rows;
  std::vector<int64_t> columns;
};

// Everything if that takes at most `max_products` multiplications; otherwise rows and columns chosen at random, one
// from each of equal stretches so that every region of D is looked at, first and last included.
Sample ChooseSample(const Product& product, double max_products, uint64_t seed);

// values * scales of the chosen rows, row-major [rows, columns]; all rows if `rows` is empty.
std::vector<double> Dequantize(const Scaled& operand, absl::Span<const int64_t> rows = {});

// The exact product on the sample, row-major.
std::vector<double> Multiply(const Product& product, const Sample& sample = {});

// How far `actual` is from `expected`.
struct Error {
  double relative_frobenius = 0;  // |actual - expected| / |expected|.
  double max_over_rms = 0;        // Largest |actual - expected| over the RMS of expected.
  double difference = 0;          // DeepGEMM's 1 - 2*sum(xy) / sum(x^2 + y^2).
  int64_t elements = 0;           // How many were compared.
  int64_t non_finite = 0;         // Elements of `actual` that are NaN or infinite; left out of the sums.
};

// Sums that make an Error; add any number of products, then ask.
class ErrorSums {
 public:
  void Add(absl::Span<const double> expected, absl::Span<const double> actual);
  void Merge(const ErrorSums& other);
  Error Get() const;

 private:
  double squared_error_ = 0;
  double squared_expected_ = 0;
  double squared_actual_ = 0;
  double cross_ = 0;
  double max_error_ = 0;
  int64_t elements_ = 0;
  int64_t non_finite_ = 0;
};

// The accuracy that gemmd promises against the dequantized operands, by type of D.
struct Limits {
  double relative_frobenius = 0;
  double max_over_rms = 0;
};
Limits LimitsFor(DType d_dtype);

// OK, or DATA_LOSS with the metric, its limit and its value.
absl::Status CheckLimits(const Error& error, const Limits& limits);

// Compares what is in each product's `d` with the reference; at most about `max_products` multiplications in all.
inline constexpr double kDefaultMaxProducts = 2e8;  // About 0.1 s on one core.
Error CheckProducts(absl::Span<const Product> products, double max_products = kDefaultMaxProducts, uint64_t seed = 1);

// q and sf of x by the rule of gemmd.v1.Quantize, row-major.
struct Quantized {
  std::vector<uint8_t> q;  // [M,K]
  std::vector<float> sf;   // 1x128: [M, ceil(K/128)]; 128x128: [ceil(M/128), ceil(K/128)].
};
Quantized Quantize(const Matrix& x, QuantizeBlock block);

// OK if `q` and `sf` are what Quantize gives: scales equal to 1e-6, elements equal or (for a value on the boundary
// between two e4m3 numbers, in at most one element of 1000) neighbours. Otherwise DATA_LOSS names the first difference.
absl::Status CheckQuantized(const Matrix& x, QuantizeBlock block, const Matrix& q, const Matrix& sf);

}  // namespace gemmd::reference

#endif  // GEMMD_CLIENT_REFERENCE_H_
