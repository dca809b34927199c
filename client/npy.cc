// SPDX-License-Identifier: Apache-2.0
#include "client/npy.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmd {
namespace {

constexpr absl::string_view kMagic("\x93NUMPY", 6);
constexpr size_t kHeaderAlignment = 64;  // As numpy.lib.format asks, so that the elements can be mapped.
constexpr size_t kMaxRankInFile = 32;    // NumPy's own limit.

absl::Status Bad(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("npy: ", what)); }

// Reads the header's dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }.
class HeaderParser {
 public:
  explicit HeaderParser(absl::string_view text) : text_(text) {}

  absl::Status Parse() {
    if (!Take("{")) return Bad("header: expected '{'");
    while (!Take("}")) {
      const absl::StatusOr<absl::string_view> key = TakeString();
      if (!key.ok()) return key.status();
      if (!Take(":")) return Bad("header: expected ':' after a key");
      if (absl::Status status = TakeValue(*key); !status.ok()) return status;
      if (!Take(",") && !StartsWith("}")) return Bad("header: expected ',' or '}' after a value");
    }
    if (!seen_descr_ || !seen_order_ || !seen_shape_) return Bad("header: expected descr, fortran_order and shape");
    SkipSpace();
    if (!text_.empty()) return Bad("header: expected nothing after '}'");
    return absl::OkStatus();
  }

  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;

 private:
  void SkipSpace() { text_ = absl::StripLeadingAsciiWhitespace(text_); }
  bool StartsWith(absl::string_view prefix) {
    SkipSpace();
    return absl::StartsWith(text_, prefix);
  }
  bool Take(absl::string_view token) {
    SkipSpace();
    return absl::ConsumePrefix(&text_, token);
  }

  absl::StatusOr<absl::string_view> TakeString() {
    SkipSpace();
    if (text_.empty() || (text_[0] != '\'' && text_[0] != '"')) return Bad("header: expected a quoted string");
    const size_t end = text_.find(text_[0], 1);
    if (end == absl::string_view::npos) return Bad("header: expected the end of a string");
    const absl::string_view value = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return value;
  }

  absl::Status TakeValue(absl::string_view key) {
    if (key == "descr") {
      const absl::StatusOr<absl::string_view> value = TakeString();
      if (!value.ok()) return value.status();
      descr = std::string(*value);
      seen_descr_ = true;
      return absl::OkStatus();
    }
    if (key == "fortran_order") {
      seen_order_ = true;
      fortran_order = Take("True");
      return fortran_order || Take("False") ? absl::OkStatus() : Bad("header: fortran_order: expected True or False");
    }
    if (key == "shape") return TakeShape();
    return Bad("header: expected the keys descr, fortran_order and shape, got another");
  }

  absl::Status TakeShape() {
    seen_shape_ = true;
    shape.clear();
    if (!Take("(")) return Bad("header: shape: expected '('");
    while (!Take(")")) {
      SkipSpace();
      const size_t digits = std::min(text_.find_first_not_of("0123456789"), text_.size());
      int64_t extent = 0;
      if (!absl::SimpleAtoi(text_.substr(0, digits), &extent)) return Bad("header: shape: expected a number");
      if (shape.size() == kMaxRankInFile) return Bad("header: shape: expected at most 32 dimensions");
      shape.push_back(extent);
      text_.remove_prefix(digits);
      if (!Take(",") && !StartsWith(")")) return Bad("header: shape: expected ',' or ')'");
    }
    return absl::OkStatus();
  }

  absl::string_view text_;
  bool seen_descr_ = false;
  bool seen_order_ = false;
  bool seen_shape_ = false;
};

absl::StatusOr<DType> DTypeOf(absl::string_view descr, DType wanted) {
  DType own = DType::kNone;
  if (descr == "<f4") own = DType::kF32;
  if (descr == "<i4") own = DType::kI32;
  if (descr == "<i8") own = DType::kI64;
  if (descr == "|u1" || descr == "<u1") own = wanted == DType::kE4m3 ? DType::kE4m3 : DType::kU8;
  if (descr == "<u2" && wanted == DType::kBf16) own = DType::kBf16;
  if (descr == "<u2" && own == DType::kNone) return Bad("descr: '<u2' holds bf16 only when dtype bf16 is asked for");
  if (own == DType::kNone) return Bad(absl::StrCat("descr: expected <f4, <i4, <i8, |u1 or <u2, got ", descr));
  if (wanted != DType::kNone && wanted != own) {
    return Bad(absl::StrCat("descr: expected ", Name(wanted), ", got ", descr));
  }
  return own;
}

absl::string_view DescrOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "<f4";
    case DType::kI32:
      return "<i4";
    case DType::kI64:
      return "<i8";
    case DType::kBf16:
      return "<u2";
    case DType::kE4m3:
    case DType::kU8:
    case DType::kNone:
      break;
  }
  return "|u1";
}

}  // namespace

absl::StatusOr<StoredArray> ParseNpy(absl::string_view file, DType dtype) {
  if (!absl::ConsumePrefix(&file, kMagic)) return Bad("expected the magic string of a .npy file");
  if (file.size() < 2) return Bad("expected a version, got the end of the file");
  const int major = static_cast<unsigned char>(file[0]);
  if ((major != 1 && major != 2) || file[1] != 0) return Bad("expected version 1.0 or 2.0");
  file.remove_prefix(2);
  const size_t length_bytes = major == 1 ? 2 : 4;
  if (file.size() < length_bytes) return Bad("expected the header's length, got the end of the file");
  size_t length = 0;
  for (size_t i = 0; i < length_bytes; ++i) length |= size_t{static_cast<unsigned char>(file[i])} << (8 * i);
  file.remove_prefix(length_bytes);
  if (length > file.size()) return Bad(absl::StrCat("header: expected ", length, " bytes, got ", file.size()));
  HeaderParser header(file.substr(0, length));
  file.remove_prefix(length);
  if (absl::Status status = header.Parse(); !status.ok()) return status;
  if (header.fortran_order) return Bad("expected C order, got Fortran order");
  const absl::StatusOr<DType> own = DTypeOf(header.descr, dtype);
  if (!own.ok()) return own.status();
  const absl::StatusOr<int64_t> byte_size = ByteSizeOf(*own, header.shape);
  if (!byte_size.ok()) return byte_size.status();
  if (static_cast<uint64_t>(*byte_size) != file.size()) {
    return Bad(absl::StrCat("data: expected ", *byte_size, " bytes, got ", file.size()));
  }
  return StoredArray{*own, std::move(header.shape), std::string(file)};
}

std::string FormatNpy(const StoredArray& array) {
  std::string header = absl::StrCat("{'descr': '", DescrOf(array.dtype), "', 'fortran_order': False, 'shape': (",
                                    absl::StrJoin(array.shape, ", "), array.shape.size() == 1 ? ",), }" : "), }");
  const size_t unpadded = kMagic.size() + 4 + header.size() + 1;
  header.append((kHeaderAlignment - unpadded % kHeaderAlignment) % kHeaderAlignment, ' ');
  header.push_back('\n');
  const char version_and_length[] = {1, 0, static_cast<char>(header.size() & 0xff),
                                     static_cast<char>(header.size() >> 8)};
  return absl::StrCat(kMagic, absl::string_view(version_and_length, 4), header, array.bytes);
}

}  // namespace gemmd
