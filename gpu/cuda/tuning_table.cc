// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/tuning_table.h"

#include <bit>
#include <cstdint>

namespace gemmd {
namespace {

struct Entry {
  int64_t m;
  int64_t n;
  int64_t k;
  TileChoice tile;
};

// NVIDIA H100 80GB HBM3 (132 SMs), 2026-11-23 and, where said, 2026-11-28. After each entry: its time, and the model's
// choice with its time.
constexpr int kSms = 132;
constexpr Entry kEntries[] = {
    {4096, 576, 7168, {128, 160, false, Multicast::kA}},      // 32.96 us; 128x160 b2 s5: 36.55
    {1024, 2112, 7168, {128, 160, false, Multicast::kNone}},  // 2026-11-28: 29.73 us; 128x160 b2 s5: 30.75
    {4096, 2112, 7168, {128, 192, false, Multicast::kNone}},  // 2026-11-28: 98.75 us; 128x192 b2 s4: 100.0
    {32, 4096, 7168, {16, 64, true, Multicast::kNone}},       // 2026-11-28: 14.91 us; 32x64 swap s16: 15.36
    {256, 4096, 7168, {128, 64, true, Multicast::kNone}},     // 21.92 us; 128x64 a2 s8: 24.83
    {512, 4096, 7168, {128, 128, false, Multicast::kNone}},   // 31.07 us; 128x128 a2 s5: 32.9
    {1024, 4096, 7168, {256, 128, false, Multicast::kNone}},  // 45.82 us; 256x128 a2 s4: 47.68
    {128, 7168, 2048, {128, 64, false, Multicast::kNone}},    // 10.14 us; 128x64 swap s8: 10.4
    {256, 7168, 2048, {128, 128, false, Multicast::kNone}},   // 12.61 us; 128x112 s7: 13.15
    {2048, 7168, 2048, {128, 128, false, Multicast::kNone}},  // 2026-11-28: 49.15 us; 128x192 b2 s4: 51.23
    {4096, 7168, 2048, {256, 128, false, Multicast::kNone}},  // 98.11 us; 256x128 a2 s4: 99.46
    {64, 7168, 16384, {64, 128, true, Multicast::kNone}},     // 49.51 us; 64x64 swap s13: 50.27
    {128, 24576, 1536, {128, 64, true, Multicast::kNone}},    // 20.51 us; 128x128 swap s5: 23.74
    {64, 32768, 512, {64, 64, true, Multicast::kNone}},       // 11.01 us; 64x128 swap s8: 12.19
    {128, 32768, 512, {128, 64, true, Multicast::kNone}},     // 12.19 us; 128x128 swap s5: 12.93
    {4096, 32768, 512, {256, 128, false, Multicast::kNone}},  // 2026-11-28: 131.43 us; 128x192 b2 s4: 134.4
};

uint64_t Bucket(int64_t m) { return std::bit_ceil(static_cast<uint64_t>(m)); }

}  // namespace

const TileChoice* FindTuned(const GemmShape& shape, int sms) {
  if (sms != kSms || shape.grouping != Grouping::kDense || shape.scaling != KernelScaling::kRowBlock ||
      shape.output != KernelOutput::kBf16 || shape.rows.size() != 1 || shape.rows[0] < 1) {
    return nullptr;
  }
  for (const Entry& entry : kEntries) {
    if (entry.n == shape.n && entry.k == shape.k && Bucket(entry.m) == Bucket(shape.rows[0])) return &entry.tile;
  }
  return nullptr;
}

}  // namespace gemmd
