// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/kernel_key.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gemmd {
namespace {

constexpr uint64_t kFnvPrime = 0x100000001b3;
constexpr uint64_t kFnvStart = 0xcbf29ce484222325;
constexpr uint64_t kOtherStart = 0x9e3779b97f4a7c15;

uint64_t Fnv1a(absl::string_view bytes, uint64_t hash) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * kFnvPrime;
  return hash;
}

}  // namespace

std::string Digest::Hex() const { return absl::StrFormat("%016x%016x", high, low); }

Digest DigestOf(absl::string_view bytes) { return {Fnv1a(bytes, kFnvStart), Fnv1a(bytes, kOtherStart)}; }

Digest KernelKey::digest() const {
  // Lengths keep neighbouring fields from running into each other.
  return DigestOf(absl::StrCat(expression.size(), ":", expression, arch.size(), ":", arch, compiler.size(), ":",
                               compiler, sources.Hex()));
}

}  // namespace gemmd
