// SPDX-License-Identifier: Apache-2.0
// The first product, as the README shows it: D[64,512] = A[64,256] * B[512,256]^T in shared memory.
// Usage: gemmd-quickstart [ADDRESS]
#include "client/client.h"

#include <cstdint>
#include <cstdio>
#include <memory>

// [quickstart]
int main(int argc, char** argv) {
  constexpr int64_t m = 64, n = 512, k = 256;
  // Offsets of the operands in one shared region, in bytes.
  constexpr uint64_t a_at = 0, b_at = a_at + m * k, sfa_at = b_at + n * k, sfb_at = sfa_at + m * (k / 128) * 4,
                     d_at = sfb_at + (n / 128) * (k / 128) * 4, end = d_at + m * n * 4;

  auto client = gemmd::Client::Connect(argc > 1 ? argv[1] : "unix:/run/gemmd/gemmd.sock");
  if (!client.ok()) return std::fprintf(stderr, "%s\n", client.status().ToString().c_str()), 1;
  auto region = (*client)->CreateHostRegion(end);
  if (!region.ok()) return std::fprintf(stderr, "%s\n", region.status().ToString().c_str()), 1;

  const uint8_t one = gemmd::FloatToE4m3(1.0f);
  for (uint8_t& a : region->Elements<uint8_t>(a_at, m * k)) a = one;
  for (uint8_t& b : region->Elements<uint8_t>(b_at, n * k)) b = one;
  for (float& sf : region->Elements<float>(sfa_at, m * (k / 128))) sf = 0.5f;          // Per 1x128 of A.
  for (float& sf : region->Elements<float>(sfb_at, (n / 128) * (k / 128))) sf = 2.0f;  // Per 128x128 of B.

  auto response = (*client)->Dense({
      .a = region->View(a_at, gemmd::DType::kE4m3, {m, k}),
      .sfa = region->View(sfa_at, gemmd::DType::kF32, {m, k / 128}),
      .b = region->View(b_at, gemmd::DType::kE4m3, {n, k}),
      .sfb = region->View(sfb_at, gemmd::DType::kF32, {n / 128, k / 128}),
      .d = region->View(d_at, gemmd::DType::kF32, {m, n}),
  });
  if (!response.ok()) return std::fprintf(stderr, "%s\n", response.status().ToString().c_str()), 1;
  std::printf("D[0][0] = %g, computed in %g us\n", static_cast<double>(region->Elements<float>(d_at, 1)[0]),
              static_cast<double>(response->times().device_ns()) / 1e3);
}
// [/quickstart]
