// SPDX-License-Identifier: Apache-2.0
// Every operation of CpuDevice over a grid of shapes, types and layouts, against the FP64 reference.
#include "tests/gpu/cpu_device_fixture.h"

namespace gemmd::cpu_test {
namespace {

TEST_F(CpuDeviceTest, DenseProductsMatchTheReference) {
  const std::vector<std::array<int64_t, 3>> shapes = {{1, 8, 16},   {3, 136, 144},   {16, 128, 128}, {33, 264, 1040},
                                                      {9, 72, 528}, {257, 264, 272}, {0, 16, 16},    {5, 24, 0}};
  for (const auto& [m, n, k] : shapes) {
    for (const Types& types : kTypes) {
      for (const Layout& layout : Layouts()) {
        Check({Op::kDense, types.scaling, types.a, DType::kBf16, m, n, k, {}, false, layout});
        Check({Op::kDense, types.scaling, types.a, DType::kF32, m, n, k, {}, false, layout});
        Check({Op::kDense, types.scaling, types.a, DType::kF32, m, n, k, {}, true, layout});
      }
    }
  }
}

TEST_F(CpuDeviceTest, GroupedProductsMatchTheReferenceAndLeaveOtherRowsAlone) {
  const std::vector<std::vector<int64_t>> patterns = {{}, {0, 0}, {1, 0, 5}, {0, 130, 1, 3}, {7, 7, 7}, {270, 0, 1}};
  for (const std::vector<int64_t>& rows : patterns) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), static_cast<int64_t>(rows.size()) + 2);
    const int64_t m_max = rows.empty() ? 4 : *std::max_element(rows.begin(), rows.end()) + 3;
    for (const Types& types : kTypes) {
      if (types.scaling == Scaling::k1D1D) continue;
      for (const Layout& layout : Layouts()) {
        const DType d = types.scaling == Scaling::kNone && layout.sf_m_major ? DType::kF32 : DType::kBf16;
        for (const int64_t k : {144, 0}) {
          Check({Op::kMGroupedContiguous, types.scaling, types.a, d, total, 136, k, rows, false, layout});
          Check({Op::kMGroupedMasked, types.scaling, types.a, d, m_max, 136, k, rows, false, layout});
        }
      }
    }
  }
}

TEST_F(CpuDeviceTest, KGroupedProductsMatchTheReference) {
  for (const std::vector<int64_t>& ks : {std::vector<int64_t>{}, {0, 128}, {16, 0, 272, 128}, {640, 48}}) {
    for (const Layout& layout : Layouts()) {
      for (const Scaling scaling : {Scaling::k1D1D, Scaling::kNone}) {
        for (const bool accumulate : {false, true}) {
          const int64_t m = 37, n = 68;
          const auto groups = static_cast<int64_t>(ks.size());
          int64_t k = 0, k_blocks = 0;
          for (const int64_t k_g : ks) k += k_g, k_blocks += Ceil(k_g, 128);
          const DType dtype = scaling == Scaling::kNone ? DType::kBf16 : DType::kE4m3;
          Tensor a = Make(layout.kind, dtype, {m * k}, {1});
          Tensor b = Make(layout.kind, dtype, {n * k}, {1});
          Fill(reference::RowMajor(a.data(), dtype, m, k), 30);
          Fill(reference::RowMajor(b.data(), dtype, n, k), 30);
          Tensor d = MakeMatrix(layout, DType::kF32, groups, m, n);
          Tensor c = MakeMatrix(layout, DType::kF32, groups, m, n);
          Tensor sfa, sfb;
          if (dtype == DType::kE4m3) FillScales(sfa = MakeScales(layout, 0, m, k_blocks));
          if (dtype == DType::kE4m3) FillScales(sfb = MakeScales(layout, 0, n, k_blocks));
          if (accumulate) FillAll(d, 1000);
          std::memcpy(c.mapping.data(), d.mapping.data(), d.mapping.byte_size());
          Gemm gemm;
          gemm.op = Op::kKGrouped;
          gemm.scaling = scaling;
          gemm.accumulate = accumulate;
          gemm.m = m;
          gemm.n = n;
          gemm.k = k;
          gemm.groups = groups;
          gemm.ks = ks;
          gemm.operand(OperandIndex::kA) = a.operand;
          gemm.operand(OperandIndex::kB) = b.operand;
          gemm.operand(OperandIndex::kD) = d.operand;
          gemm.operand(OperandIndex::kSfa) = sfa.operand;
          gemm.operand(OperandIndex::kSfb) = sfb.operand;
          for (int64_t group = 0; group < groups; ++group) d.Allow(d.Group(group));
          Snapshot(d);
          ExpectOk(gemm);
          ExpectRestUntouched(d);
          std::vector<Product> products;
          int64_t k_begin = 0, sf_begin = 0;
          for (int64_t group = 0; group < groups; ++group) {
            const int64_t k_g = ks[static_cast<size_t>(group)];
            const int64_t sf_columns = Ceil(k_g, 128);
            Product product;
            product.a.values = reference::RowMajor(a.data() + m * k_begin * ByteSize(dtype), dtype, m, k_g);
            product.b.values = reference::RowMajor(b.data() + n * k_begin * ByteSize(dtype), dtype, n, k_g);
            if (dtype == DType::kE4m3) product.a.sf = sfa.View().Window(0, m, sf_begin, sf_columns);
            if (dtype == DType::kE4m3) product.b.sf = sfb.View().Window(0, n, sf_begin, sf_columns);
            if (accumulate) product.c = c.Group(group);
            product.d = d.Group(group);
            products.push_back(product);
            k_begin += k_g;
            sf_begin += sf_columns;
          }
          const absl::Status status =
              reference::CheckLimits(reference::CheckProducts(products), reference::LimitsFor(DType::kF32));
          EXPECT_TRUE(status.ok()) << status;
        }
      }
    }
  }
}

TEST_F(CpuDeviceTest, QuantizedBlocksMatchTheReference) {
  for (const QuantizeBlock block : {QuantizeBlock::k1x128, QuantizeBlock::k128x128}) {
    for (const DType dtype : {DType::kBf16, DType::kF32}) {
      for (const Layout& layout : Layouts()) {
        for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, 16}, {131, 272}, {0, 16}, {257, 1024}}) {
          Tensor x = MakeMatrix(layout, dtype, 0, m, k);
          Tensor q = MakeMatrix(layout, DType::kE4m3, 0, m, k);
          const bool by_row = block == QuantizeBlock::k1x128;
          Tensor sf = by_row ? MakeScales(layout, 0, m, Ceil(k, 128))
                             : MakeScales({layout.kind, 0, false}, 0, Ceil(m, 128), Ceil(k, 128));
          FillAll(x, 3);
          Gemm gemm;
          gemm.op = Op::kQuantize;
          gemm.quantize_block = block;
          gemm.m = m;
          gemm.k = k;
          gemm.operand(OperandIndex::kA) = x.operand;
          gemm.operand(OperandIndex::kD) = q.operand;
          gemm.operand(OperandIndex::kSfd) = sf.operand;
          q.Allow(q.View());
          sf.Allow(sf.View());
          Snapshot(q);
          Snapshot(sf);
          ExpectOk(gemm);
          ExpectRestUntouched(q);
          ExpectRestUntouched(sf);
          const absl::Status status = reference::CheckQuantized(x.View(), block, q.View(), sf.View());
          EXPECT_TRUE(status.ok()) << status;
        }
      }
    }
  }
}

TEST_F(CpuDeviceTest, TransposesElementsOfEveryWidth) {
  for (const DType dtype : {DType::kE4m3, DType::kBf16, DType::kF32}) {
    for (const Layout& layout : Layouts()) {
      for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, 1}, {0, 16}, {65, 131}, {200, 64}}) {
        Tensor x = MakeMatrix(layout, dtype, 0, m, k);
        Tensor y = MakeMatrix(layout, dtype, 0, k, m);
        FillAll(x, 3);
        Gemm gemm;
        gemm.op = Op::kTranspose;
        gemm.m = m;
        gemm.k = k;
        gemm.operand(OperandIndex::kA) = x.operand;
        gemm.operand(OperandIndex::kD) = y.operand;
        y.Allow(y.View());
        Snapshot(y);
        ExpectOk(gemm);
        ExpectRestUntouched(y);
        const auto size = static_cast<size_t>(ByteSize(dtype));
        int64_t different = 0;
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t column = 0; column < k; ++column) {
            const std::byte* from = x.data() + (row * x.operand.strides[0] + column) * ByteSize(dtype);
            const std::byte* to = y.data() + (column * y.operand.strides[0] + row) * ByteSize(dtype);
            different += std::memcmp(from, to, size) != 0;
          }
        }
        EXPECT_EQ(different, 0) << Name(dtype) << " " << m << "x" << k;
      }
    }
  }
}

TEST_F(CpuDeviceTest, CopiesBytesBetweenAllKindsOfMemory) {
  for (const RegionKind from : {RegionKind::kHost, RegionKind::kSharedMemory}) {
    for (const RegionKind to : {RegionKind::kTensor, RegionKind::kSharedMemory}) {
      for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{5'000'001}}) {
        Tensor source = Make(from, DType::kU8, {bytes}, {1});
        Tensor destination = Make(to, DType::kU8, {bytes}, {1});
        for (int64_t i = 0; i < bytes; ++i) source.data()[i] = static_cast<std::byte>(i * 7);
        Gemm gemm;
        gemm.op = Op::kCopy;
        gemm.m = 1;
        gemm.k = bytes;
        gemm.operand(OperandIndex::kA) = source.operand;
        gemm.operand(OperandIndex::kD) = destination.operand;
        std::fill_n(destination.computed.begin() + kGuardBytes, bytes, true);
        Snapshot(destination);
        ExpectOk(gemm);
        ExpectRestUntouched(destination);
        EXPECT_EQ(std::memcmp(source.data(), destination.data(), static_cast<size_t>(bytes)), 0);
      }
    }
  }
}

}  // namespace
}  // namespace gemmd::cpu_test
