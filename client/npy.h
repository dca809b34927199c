// SPDX-License-Identifier: Apache-2.0
// NumPy's .npy files, versions 1.0 and 2.0 (numpy.lib.format), C order, little-endian. NumPy has no 8-bit or brain
// float: e4m3 is stored as uint8 and bf16 as uint16, and the reader says which it wants. Pure functions; any thread.
#ifndef GEMMD_CLIENT_NPY_H_
#define GEMMD_CLIENT_NPY_H_

#include "client/stored_array.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <string>

namespace gemmd {

// Parses a whole file. `dtype` kNone: as the file says (f4, i4, i8, u1; u2 has no meaning of its own and is refused).
// kE4m3 takes u1, kBf16 takes u2; any other type must be the file's own. Total on any input.
// Errors: INVALID_ARGUMENT (not such a file, another type or order, more or fewer bytes than the header says).
absl::StatusOr<StoredArray> ParseNpy(absl::string_view file, DType dtype = DType::kNone);

// The file (version 1.0) that holds this array. Requires: as many bytes as dtype and shape say.
std::string FormatNpy(const StoredArray& array);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_NPY_H_
