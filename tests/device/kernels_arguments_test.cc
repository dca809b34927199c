// SPDX-License-Identifier: Apache-2.0
// What the C interface of tests/bench/gemmd_kernels.h refuses, in which words. Needs no GPU: arguments are looked at
// first, and whatever has none to complain of complains that there are no kernels.
#include "tests/bench/gemmd_kernels.h"

#include "gtest/gtest.h"

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr char kAllRight[] = "kernels: expected what gemmd_kernels_open gave, got null";

// What is never looked into, on 256 bytes.
void* Somewhere() { return reinterpret_cast<void*>(256); }

GemmdScales Scales(int64_t blocks) { return {static_cast<const float*>(Somewhere()), 0, blocks, 1}; }

GemmdProduct ProductOfBatches(int64_t batches) {
  GemmdProduct p = {};
  p.a = {Somewhere(), batches, 64, 256, 64 * 256, 256};
  p.b = {Somewhere(), batches, 128, 256, 128 * 256, 256};
  p.d = {Somewhere(), batches, 64, 128, 64 * 128, 128};
  p.sfa = p.sfb = Scales(2);
  return p;
}

// What the interface says of a call that must not succeed.
std::string Refusal(const std::function<int()>& call) {
  ::testing::internal::CaptureStderr();
  EXPECT_NE(call(), 0);
  return ::testing::internal::GetCapturedStderr();
}

std::string RefusalOf(const GemmdProduct& p) {
  return Refusal([&] { return gemmd_kernels_run(nullptr, &p, nullptr, nullptr, 0); });
}

std::string MaskedRefusalOf(const GemmdProduct& p, const void* masked_m, void* rows) {
  return Refusal([&] {
    return gemmd_kernels_run_masked(nullptr, &p, static_cast<const int32_t*>(masked_m), static_cast<int32_t*>(rows),
                                    nullptr, nullptr, 0);
  });
}

std::string RefusalOf(const GemmdKGroupedProduct& p) {
  return Refusal([&] { return gemmd_kernels_run_k_grouped(nullptr, &p, nullptr, nullptr, 0); });
}

std::string RefusalOf(const GemmdQuantization& q) {
  return Refusal([&] { return gemmd_kernels_quantize(nullptr, &q, nullptr); });
}

// A change to arguments that are right, and what is said of it.
template <typename Arguments>
using Mistakes = std::vector<std::pair<std::function<void(Arguments&)>, std::string>>;

template <typename Arguments>
void ExpectRefused(const Arguments& right, const Mistakes<Arguments>& mistakes) {
  EXPECT_NE(RefusalOf(right).find(kAllRight), std::string::npos) << RefusalOf(right);
  for (const auto& [make, message] : mistakes) {
    Arguments wrong = right;
    make(wrong);
    EXPECT_EQ(RefusalOf(wrong), "INVALID_ARGUMENT: " + message + "\n");
  }
}

TEST(KernelsArgumentsTest, EveryFieldOfAProductIsChecked) {
  using P = GemmdProduct;
  ExpectRefused<P>(
      ProductOfBatches(1),
      {{[](P& p) { p.scaling = 3; }, "scaling: expected from 0 to 2, got 3"},
       {[](P& p) { p.scaling = -1; }, "scaling: expected from 0 to 2, got -1"},
       {[](P& p) { p.output = 7; }, "output: expected from 0 to 2, got 7"},
       {[](P& p) { p.a.rows = -1; }, "a.rows: expected from 0 to 2147483647, got -1"},
       {[](P& p) { p.b.rows = int64_t{1} << 31; }, "b.rows: expected from 0 to 2147483647, got 2147483648"},
       {[](P& p) { p.d.batches = -1; }, "d.batches: expected from 0 to 2147483647, got -1"},
       {[](P& p) { p.a.data = nullptr; }, "a.data: expected an address on 16 bytes, got 0x0"},
       {[](P& p) { p.d.data = reinterpret_cast<void*>(8); }, "d.data: expected an address on 16 bytes, got 0x8"},
       {[](P& p) { p.b.row_stride = 255; }, "b.row_stride: expected from 256 to 274877906944, got 255"},
       {[](P& p) { p.a.row_stride = 264; }, "a.row_stride: expected a multiple of 16 bytes, got 264 elements of 1"},
       {[](P& p) { p.d.row_stride = 129; }, "d.row_stride: expected a multiple of 16 bytes, got 129 elements of 2"},
       {[](P& p) { p.b.columns = 128; }, "b.columns: expected 256 as a.columns, got 128"},
       {[](P& p) { p.d.rows = 63; }, "d.rows: expected 64 as a.rows, got 63"},
       {[](P& p) { p.d.columns = 64; }, "d.columns: expected 128 as b.rows, got 64"},
       {[](P& p) { p.sfa.data = nullptr; }, "sfa.data: expected an address on 4 bytes, got 0x0"},
       {[](P& p) { p.sfa.row_stride = 8388608; }, "sfa.row_stride: expected from 0 to 8388607, got 8388608"},
       {[](P& p) { p.sfb.block_stride = -1; }, "sfb.block_stride: expected from 0 to 274877906944, got -1"},
       {[](P& p) { p.segment_count = 1; }, "segment_count: expected from 0 to 0, got 1"},
       {[](P& p) { p.a.batches = p.d.batches = 2; },
        "a.batches: expected 1 as a product without segments has, got 2"}});
  EXPECT_EQ(Refusal([] { return gemmd_kernels_run(nullptr, nullptr, nullptr, nullptr, 0); }),
            "INVALID_ARGUMENT: product: expected one, got null\n");
}

TEST(KernelsArgumentsTest, WhatIsNotUsedIsNotChecked) {
  GemmdProduct bf16 = ProductOfBatches(1);
  bf16.scaling = 2;
  bf16.sfa = bf16.sfb = {};
  EXPECT_NE(RefusalOf(bf16).find(kAllRight), std::string::npos) << RefusalOf(bf16);
  GemmdProduct empty = ProductOfBatches(1);
  empty.a.rows = empty.d.rows = 0;
  empty.a.data = empty.d.data = nullptr;
  empty.sfa.data = nullptr;
  EXPECT_NE(RefusalOf(empty).find(kAllRight), std::string::npos) << RefusalOf(empty);
  GemmdProduct flat = ProductOfBatches(1);
  flat.a.columns = flat.b.columns = 0;
  flat.a.data = flat.b.data = nullptr;
  flat.sfa.data = flat.sfb.data = nullptr;
  EXPECT_NE(RefusalOf(flat).find(kAllRight), std::string::npos) << RefusalOf(flat);
}

TEST(KernelsArgumentsTest, SegmentsLieInsideTheMatrices) {
  using S = GemmdSegment;
  const std::vector<std::pair<S, std::string>> cases = {
      {{0, 1, 0, 64}, kAllRight},
      {{1, 0, 7, 7}, kAllRight},
      {{2, 0, 0, 64}, "segments[1].batch: expected from 0 to 1, got 2"},
      {{0, -1, 0, 64}, "segments[1].group: expected from 0 to 1, got -1"},
      {{0, 0, -1, 64}, "segments[1].row_begin: expected from 0 to 64, got -1"},
      {{0, 0, 8, 65}, "segments[1].row_end: expected from 8 to 64, got 65"},
      {{0, 0, 8, 7}, "segments[1].row_end: expected from 8 to 64, got 7"}};
  for (const auto& [segment, message] : cases) {
    const S segments[] = {{0, 0, 0, 64}, segment};
    GemmdProduct p = ProductOfBatches(2);
    p.segments = segments;
    p.segment_count = 2;
    EXPECT_EQ(RefusalOf(p), "INVALID_ARGUMENT: " + message + "\n");
    p.segment_count = -1;
    EXPECT_EQ(RefusalOf(p), "INVALID_ARGUMENT: segment_count: expected from 0 to 2147483647, got -1\n");
  }
}

TEST(KernelsArgumentsTest, MaskedProductsHaveRowsInsteadOfSegments) {
  const GemmdProduct right = ProductOfBatches(2);
  const auto says = [&](const GemmdProduct& p, const std::string& message) {
    EXPECT_EQ(MaskedRefusalOf(p, Somewhere(), Somewhere()), "INVALID_ARGUMENT: " + message + "\n");
  };
  says(right, kAllRight);
  GemmdProduct wrong = right;
  const GemmdSegment segment = {};
  wrong.segments = &segment;
  says(wrong, "segments: expected null, masked_m says which rows there are, got some");
  wrong = right;
  wrong.b.batches = 3;
  says(wrong, "b.batches: expected 2 as a.batches, got 3");
  wrong = right;
  wrong.a.batch_stride = 8;
  says(wrong, "a.batch_stride: expected a multiple of 16 bytes, got 8 elements of 1");
  EXPECT_EQ(MaskedRefusalOf(right, nullptr, Somewhere()),
            "INVALID_ARGUMENT: masked_m: expected an address on 4 bytes, got 0x0\n");
  EXPECT_EQ(MaskedRefusalOf(right, Somewhere(), nullptr),
            "INVALID_ARGUMENT: rows: expected an address on 4 bytes, got 0x0\n");
}

TEST(KernelsArgumentsTest, EveryFieldOfAKGroupedProductIsChecked) {
  using P = GemmdKGroupedProduct;
  static const int64_t ks[] = {144, 0};
  static const int64_t odd[] = {144, 24};
  P right = {};
  right.scaling = right.output = 1;
  right.m = right.n = 64;
  right.groups = 2;
  right.ks = ks;
  right.a = right.b = Somewhere();
  right.d = {Somewhere(), 2, 64, 64, 64 * 64, 64};
  right.sfa = right.sfb = Scales(2);
  ExpectRefused<P>(right,
                   {{[](P& p) { p.scaling = 0; }, "scaling: expected from 1 to 2, got 0"},
                    {[](P& p) { p.output = 0; }, "output: expected from 1 to 2, got 0"},
                    {[](P& p) { p.m = -1; }, "m: expected from 0 to 2147483647, got -1"},
                    {[](P& p) { p.n = int64_t{1} << 40; }, "n: expected from 0 to 2147483647, got 1099511627776"},
                    {[](P& p) { p.groups = -2; }, "groups: expected from 0 to 2147483647, got -2"},
                    {[](P& p) { p.ks = nullptr; }, "ks: expected 2 numbers, got null"},
                    {[](P& p) { p.ks = odd; }, "ks[1]: expected a multiple of 16 from 0 to 2147483647, got 24"},
                    {[](P& p) { p.d.batches = 1; }, "d.batches: expected 2 as groups, got 1"},
                    {[](P& p) { p.d.rows = 32; }, "d.rows: expected 64 as m, got 32"},
                    {[](P& p) { p.a = nullptr; }, "a: expected an address on 16 bytes, got 0x0"},
                    {[](P& p) { p.sfb.data = nullptr; }, "sfb.data: expected an address on 4 bytes, got 0x0"}});
}

TEST(KernelsArgumentsTest, EveryFieldOfAQuantizationIsChecked) {
  using Q = GemmdQuantization;
  const Q right = {0, 0, 64, 256, Somewhere(), 256, Somewhere(), 256, static_cast<float*>(Somewhere()), 2, 1};
  ExpectRefused<Q>(
      right,
      {{[](Q& q) { q.input = 2; }, "input: expected from 0 to 1, got 2"},
       {[](Q& q) { q.shape = -1; }, "shape: expected from 0 to 1, got -1"},
       {[](Q& q) { q.m = -1; }, "m: expected from 0 to 2147483647, got -1"},
       {[](Q& q) { q.x = nullptr; }, "x: expected an address on 16 bytes, got 0x0"},
       {[](Q& q) { q.x_row_stride = 128; }, "x_row_stride: expected from 256 to 274877906944, got 128"},
       {[](Q& q) { q.q_row_stride = 264; }, "q_row_stride: expected a multiple of 16 bytes, got 264 elements of 1"},
       {[](Q& q) { q.sf = nullptr; }, "sf: expected an address on 4 bytes, got 0x0"}});
}

}  // namespace
}  // namespace gemmd
