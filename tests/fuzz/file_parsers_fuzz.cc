// SPDX-License-Identifier: Apache-2.0
// The parsers of files that a user hands to gemmctl or gemmd, on arbitrary bytes. libFuzzer target; see
// tests/README.md.
#include "client/npy.h"
#include "proto/bearer_token.h"
#include "proto/safetensors.h"
#include "proto/warm_up_manifest.h"

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view file(reinterpret_cast<const char*>(data), size);
  (void)gemmd::ParseNpy(file);
  (void)gemmd::ParseSafetensors(file);
  (void)gemmd::ParseSafetensorsHeader(file, size + 1000);
  (void)gemmd::ParseWarmUpManifest(file);
  (void)gemmd::ParseTokens(file);
  return 0;
}
