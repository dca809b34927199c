// SPDX-License-Identifier: Apache-2.0
#include "client/text_table.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include <algorithm>
#include <cstddef>

namespace gemmd {
namespace {

bool IsNumber(const std::string& cell) {
  return !cell.empty() && absl::ascii_isdigit(static_cast<unsigned char>(cell[0]));
}

}  // namespace

std::string TextTable::ToString() const {
  const size_t columns = rows_[0].size();
  std::vector<size_t> widths(columns, 0);
  std::vector<bool> right(columns, rows_.size() > 1);
  for (size_t row = 0; row < rows_.size(); ++row) {
    for (size_t column = 0; column < columns; ++column) {
      widths[column] = std::max(widths[column], rows_[row][column].size());
      if (row > 0 && !IsNumber(rows_[row][column])) right[column] = false;
    }
  }
  std::string text;
  for (const std::vector<std::string>& row : rows_) {
    std::string line;
    for (size_t column = 0; column < columns; ++column) {
      const std::string padding(widths[column] - row[column].size(), ' ');
      absl::StrAppend(&line, column == 0 ? "" : "  ", right[column] ? padding : "", row[column],
                      right[column] ? "" : padding);
    }
    absl::StrAppend(&text, absl::StripTrailingAsciiWhitespace(line), "\n");
  }
  return text;
}

std::string BytesText(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= uint64_t{1} << 30) return absl::StrFormat("%.2f GiB", value / 0x1p30);
  if (bytes >= uint64_t{1} << 20) return absl::StrFormat("%.2f MiB", value / 0x1p20);
  if (bytes >= uint64_t{1} << 10) return absl::StrFormat("%.2f KiB", value / 0x1p10);
  return absl::StrCat(bytes, " B");
}

std::string NanosText(double nanoseconds) {
  if (nanoseconds >= 1e9) return absl::StrFormat("%.3g s", nanoseconds / 1e9);
  if (nanoseconds >= 1e6) return absl::StrFormat("%.3g ms", nanoseconds / 1e6);
  return absl::StrFormat("%.3g us", nanoseconds / 1e3);
}

std::string FlopsText(double flops_per_second) {
  if (flops_per_second >= 1e12) return absl::StrFormat("%.2f TFLOP/s", flops_per_second / 1e12);
  return absl::StrFormat("%.2f GFLOP/s", flops_per_second / 1e9);
}

}  // namespace gemmd
