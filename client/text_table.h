// SPDX-License-Identifier: Apache-2.0
// What the programs print: one aligned table for people. Used by gemmctl and gemmload.
#ifndef GEMMD_CLIENT_TEXT_TABLE_H_
#define GEMMD_CLIENT_TEXT_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace gemmd {

class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  // Requires: as many cells as the header.
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // Columns as wide as their widest cell, two spaces apart; numbers to the right.
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string BytesText(uint64_t bytes);           // "1.5 MiB".
std::string NanosText(double nanoseconds);       // "12.3 us".
std::string FlopsText(double flops_per_second);  // "85.1 GFLOP/s".

}  // namespace gemmd

#endif  // GEMMD_CLIENT_TEXT_TABLE_H_
