// SPDX-License-Identifier: Apache-2.0
#include "client/random_data.h"

#include "client/parallel.h"
#include "proto/element_type.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace gemmd {
namespace {

// splitmix64: each seed starts an independent sequence, which is what one sequence per row needs.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Nearly normal with mean 0 and variance 1: the sum of four uniform 16-bit numbers. Several times faster than an
  // exact normal distribution, and the tails do not matter here.
  float Normal() {
    const uint64_t bits = Next();
    const auto sum =
        static_cast<int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
    return static_cast<float>(sum - 2 * 65535) * (1.7320508f / 65536.0f);
  }

 private:
  uint64_t state_;
};

uint64_t Mix(uint64_t seed, uint64_t value) { return Random(seed ^ (value * 0xd1342543de82ef95u)).Next(); }

// The magnitude of the 128x128 block that holds this element.
float BlockMagnitude(uint64_t seed, int64_t row, int64_t column) {
  const uint64_t block = static_cast<uint64_t>(row / kScaleBlock) << 32 | static_cast<uint64_t>(column / kScaleBlock);
  const auto steps = static_cast<int>(Mix(~seed, block) % (2 * kMagnitudeSpread + 1));
  return std::ldexp(1.0f, steps - kMagnitudeSpread);
}

void FillRow(uint64_t seed, int64_t row, int64_t columns, float* values) {
  Random random(Mix(seed, static_cast<uint64_t>(row)));
  for (int64_t begin = 0; begin < columns; begin += kScaleBlock) {
    const float magnitude = BlockMagnitude(seed, row, begin);
    const int64_t end = std::min(columns, begin + kScaleBlock);
    for (int64_t k = begin; k < end; ++k) values[k] = random.Normal() * magnitude;
  }
}

// Quantizes the columns of one scale block of `rows` rows.
float QuantizeBlockAt(const float* values, int64_t rows, int64_t columns, int64_t pitch, uint8_t* q) {
  float amax = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < columns; ++k) amax = std::max(amax, std::fabs(values[row * pitch + k]));
  }
  const float sf = amax == 0 ? 1.0f : amax / kE4m3Max;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < columns; ++k) q[row * pitch + k] = FloatToE4m3(values[row * pitch + k] / sf);
  }
  return sf;
}

void CheckSize(size_t size, int64_t rows, int64_t columns) {
  if (size != static_cast<size_t>(rows * columns)) std::abort();
}

}  // namespace

void FillRandom(uint64_t seed, int64_t rows, int64_t columns, absl::Span<float> values) {
  CheckSize(values.size(), rows, columns);
  ParallelFor(rows, [&](int64_t row) { FillRow(seed, row, columns, values.data() + row * columns); });
}

void FillRandom(uint64_t seed, int64_t rows, int64_t columns, absl::Span<uint16_t> bf16_values) {
  CheckSize(bf16_values.size(), rows, columns);
  ParallelFor(rows, [&](int64_t row) {
    std::vector<float> values(static_cast<size_t>(columns));
    FillRow(seed, row, columns, values.data());
    std::transform(values.begin(), values.end(), bf16_values.data() + row * columns, FloatToBf16);
  });
}

void FillRandomQuantized(uint64_t seed, int64_t rows, int64_t columns, QuantizeBlock block, absl::Span<uint8_t> values,
                         absl::Span<float> sf) {
  const int64_t block_rows = block == QuantizeBlock::k128x128 ? kScaleBlock : 1;
  const int64_t sf_rows = (rows + block_rows - 1) / block_rows;
  const int64_t sf_columns = (columns + kScaleBlock - 1) / kScaleBlock;
  CheckSize(values.size(), rows, columns);
  CheckSize(sf.size(), sf_rows, sf_columns);
  ParallelFor(sf_rows, [&](int64_t sf_row) {
    const int64_t row_begin = sf_row * block_rows;
    const int64_t row_count = std::min(rows - row_begin, block_rows);
    std::vector<float> exact(static_cast<size_t>(row_count * columns));
    for (int64_t row = 0; row < row_count; ++row) FillRow(seed, row_begin + row, columns, exact.data() + row * columns);
    uint8_t* q = values.data() + row_begin * columns;
    for (int64_t i = 0; i < sf_columns; ++i) {
      const int64_t k = i * kScaleBlock;
      sf[static_cast<size_t>(sf_row * sf_columns + i)] =
          QuantizeBlockAt(exact.data() + k, row_count, std::min(columns - k, kScaleBlock), columns, q + k);
    }
  });
}

}  // namespace gemmd
