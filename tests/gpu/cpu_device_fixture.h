// SPDX-License-Identifier: Apache-2.0
// What the tests of CpuDevice share: operands with guard zones in memory that device and test both see, and the
// comparison of every operation with the FP64 reference.
#ifndef GEMMD_TESTS_GPU_CPU_DEVICE_FIXTURE_H_
#define GEMMD_TESTS_GPU_CPU_DEVICE_FIXTURE_H_
#include "client/reference.h"
#include "gpu/cpu/cpu_device.h"
#include "proto/shared_memory.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace gemmd {

using reference::Matrix;
using reference::Product;
using reference::Scaled;

inline constexpr int64_t kGuardBytes = 256;
inline constexpr std::byte kPoison{0xa5};
inline constexpr double kMaxProducts = 3e6;  // Of a case, checked; larger ones are sampled, for the sanitizers' sake.
inline constexpr int64_t kLeastElementsForMean = 4096;
inline constexpr double kBf16HalfUnit = 1.0 / 256;

inline int64_t Ceil(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// How a test lays its operands out.
struct Layout {
  RegionKind kind = RegionKind::kHost;
  int64_t pitch_bytes = 0;  // Added to each row.
  bool sf_m_major = false;
};

// One operand with guard zones around it, in memory that the test sees too.
struct Tensor {
  SharedMapping mapping;
  UniqueFd fd;
  Operand operand;
  std::vector<std::byte> before;  // All bytes, as they were before the run.
  std::vector<bool> computed;     // By byte: the run may change it.

  std::byte* data() const { return mapping.data() + kGuardBytes; }
  Matrix View() const {
    return {data(), operand.dtype, operand.shape[0], operand.shape[1], operand.strides[0], operand.strides[1]};
  }
  Matrix Group(int64_t group) const {
    return {data() + group * operand.strides[0] * ByteSize(operand.dtype),
            operand.dtype,
            operand.shape[1],
            operand.shape[2],
            operand.strides[1],
            operand.strides[2]};
  }
  void Allow(const Matrix& window) {
    const int64_t size = ByteSize(window.dtype);
    const auto begin = static_cast<const std::byte*>(window.data) - mapping.data();
    for (int64_t row = 0; row < window.rows; ++row) {
      for (int64_t column = 0; column < window.columns; ++column) {
        const int64_t at = begin + (row * window.row_stride + column * window.column_stride) * size;
        std::fill_n(computed.begin() + at, size, true);
      }
    }
  }
};

class CpuDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override { Open({.threads = 3}); }

  void Open(const CpuDeviceOptions& options) {
    auto device = CpuDevice::Open(options);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }

  // A tensor of poison. Strides in elements.
  Tensor Make(RegionKind kind, DType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides) {
    Tensor tensor;
    int64_t elements = 1;
    for (size_t i = 0; i < shape.size(); ++i) elements += std::max<int64_t>(shape[i] - 1, 0) * strides[i];
    const auto bytes = static_cast<uint64_t>(elements * ByteSize(dtype) + 2 * kGuardBytes);
    if (kind == RegionKind::kSharedMemory) {
      tensor.fd = UniqueFd(memfd_create("test", MFD_CLOEXEC));
      EXPECT_EQ(ftruncate(tensor.fd.get(), static_cast<off_t>(bytes)), 0);
    } else {
      tensor.fd = *CreateSealedMemory(bytes);
    }
    tensor.mapping = *SharedMapping::Map(tensor.fd.get(), bytes, Access::kReadWrite);
    std::fill_n(tensor.mapping.data(), bytes, kPoison);
    auto memory = device_->Map({kind, Access::kReadWrite, bytes}, tensor.fd.Duplicate());
    EXPECT_TRUE(memory.ok()) << memory.status();
    tensor.operand.memory = *memory;
    tensor.operand.region = ++regions_;
    tensor.operand.offset = kGuardBytes;
    tensor.operand.dtype = dtype;
    tensor.operand.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), tensor.operand.shape.begin());
    std::copy(strides.begin(), strides.end(), tensor.operand.strides.begin());
    tensor.computed.resize(bytes);
    return tensor;
  }

  // [groups,] rows, columns; groups 0: rank 2.
  Tensor MakeMatrix(const Layout& layout, DType dtype, int64_t groups, int64_t rows, int64_t columns) {
    const int64_t pitch = columns + layout.pitch_bytes / ByteSize(dtype);
    if (groups == 0) return Make(layout.kind, dtype, {rows, columns}, {pitch, 1});
    return Make(layout.kind, dtype, {groups, rows, columns}, {rows * pitch, pitch, 1});
  }

  Tensor MakeScales(const Layout& layout, int64_t groups, int64_t rows, int64_t columns) {
    if (!layout.sf_m_major) return MakeMatrix({layout.kind, 0, false}, DType::kF32, groups, rows, columns);
    const int64_t pitch = Ceil(rows, 4) * 4;
    if (groups == 0) return Make(layout.kind, DType::kF32, {rows, columns}, {1, pitch});
    return Make(layout.kind, DType::kF32, {groups, rows, columns}, {pitch * columns, 1, pitch});
  }

  void Fill(const Matrix& matrix, double scale) {
    std::normal_distribution<float> normal;
    for (int64_t row = 0; row < matrix.rows; ++row) {
      for (int64_t column = 0; column < matrix.columns; ++column) {
        auto* at = const_cast<std::byte*>(static_cast<const std::byte*>(matrix.data)) +
                   (row * matrix.row_stride + column * matrix.column_stride) * ByteSize(matrix.dtype);
        const float value = normal(random_) * static_cast<float>(scale);
        const uint8_t e4m3 = FloatToE4m3(value);
        const uint16_t bf16 = FloatToBf16(value);
        if (matrix.dtype == DType::kE4m3) std::memcpy(at, &e4m3, 1);
        if (matrix.dtype == DType::kBf16) std::memcpy(at, &bf16, 2);
        if (matrix.dtype == DType::kF32) std::memcpy(at, &value, 4);
      }
    }
  }
  void FillAll(const Tensor& tensor, double scale) {
    if (tensor.operand.rank == 2) return Fill(tensor.View(), scale);
    for (int64_t group = 0; group < tensor.operand.shape[0]; ++group) Fill(tensor.Group(group), scale);
  }

  // Scale factors within a factor of three, so that D is nearly normal: the limits on the largest error assume that.
  void FillScales(const Tensor& tensor) {
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    const int64_t groups = tensor.operand.rank == 3 ? tensor.operand.shape[0] : 1;
    for (int64_t group = 0; group < groups; ++group) {
      const Matrix sf = tensor.operand.rank == 3 ? tensor.Group(group) : tensor.View();
      for (int64_t i = 0; i < sf.rows * sf.columns; ++i) {
        auto* values = static_cast<float*>(const_cast<void*>(sf.data));
        values[i / sf.columns * sf.row_stride + i % sf.columns * sf.column_stride] = uniform(random_);
      }
    }
  }

  std::vector<Reason> Run(const std::vector<Gemm>& gemms) {
    Batch batch;
    for (const Gemm& gemm : gemms) batch.jobs.emplace_back().gemm = gemm;
    absl::Notification finished;
    std::vector<Reason> reasons;
    device_->Submit(std::move(batch), [&](Batch, BatchResult result) {
      reasons = std::move(result.reasons);
      finished.Notify();
    });
    finished.WaitForNotification();
    return reasons;
  }

  void ExpectOk(const Gemm& gemm) {
    const std::vector<Reason> reasons = Run({gemm});
    ASSERT_EQ(reasons.size(), 1u);
    EXPECT_EQ(reasons[0].rule, Rule::kNone) << Describe(reasons[0]);
  }

  static void Snapshot(Tensor& tensor) {
    tensor.before.assign(tensor.mapping.data(), tensor.mapping.data() + tensor.mapping.byte_size());
  }
  static void ExpectRestUntouched(const Tensor& tensor) {
    for (size_t i = 0; i < tensor.before.size(); ++i) {
      if (tensor.computed[i]) continue;
      ASSERT_EQ(tensor.mapping.data()[i], tensor.before[i]) << "byte " << i << " of " << tensor.before.size();
    }
  }

  // A test case of a product with one row dimension.
  struct Case {
    Op op = Op::kDense;
    Scaling scaling = Scaling::k1D2D;
    DType a = DType::kE4m3;
    DType d = DType::kBf16;
    int64_t m = 0, n = 0, k = 0;
    std::vector<int64_t> group_rows;  // Contiguous: rows of each group. Masked: masked_m.
    bool accumulate = false;
    Layout layout;
  };

  // Runs a case and compares with the reference and with what must not change.
  void Check(const Case& c) {
    SCOPED_TRACE(absl::StrCat(Name(c.op), " ", Name(c.scaling), " a=", Name(c.a), " d=", Name(c.d), " m=", c.m,
                              " n=", c.n, " k=", c.k, " accumulate=", c.accumulate, " pitch=", c.layout.pitch_bytes,
                              " m_major=", c.layout.sf_m_major, " kind=", static_cast<int>(c.layout.kind)));
    const bool masked = c.op == Op::kMGroupedMasked;
    const auto groups = static_cast<int64_t>(c.group_rows.size());
    const int64_t k_blocks = Ceil(c.k, 128);
    const bool fp8 = c.scaling != Scaling::kNone;
    Tensor a = MakeMatrix(c.layout, c.a, masked ? groups : 0, c.m, c.k);
    Tensor b = MakeMatrix(c.layout, fp8 ? DType::kE4m3 : DType::kBf16, groups, c.n, c.k);
    Tensor d = MakeMatrix(c.layout, c.d, masked ? groups : 0, c.m, c.n);
    Tensor sfa, sfb;
    FillAll(a, 30);
    FillAll(b, 30);
    if (c.accumulate) FillAll(d, 1000);
    if (c.a == DType::kE4m3) FillScales(sfa = MakeScales(c.layout, masked ? groups : 0, c.m, k_blocks));
    if (c.scaling == Scaling::k1D1D) FillScales(sfb = MakeScales(c.layout, 0, c.n, k_blocks));
    if (c.scaling == Scaling::k1D2D) {
      FillScales(sfb = MakeScales({c.layout.kind, 0, false}, groups, Ceil(c.n, 128), k_blocks));
    }
    Gemm gemm;
    gemm.op = c.op;
    gemm.scaling = c.scaling;
    gemm.accumulate = c.accumulate;
    gemm.m = c.m;
    gemm.n = c.n;
    gemm.k = c.k;
    gemm.groups = groups;
    gemm.operand(OperandIndex::kA) = a.operand;
    gemm.operand(OperandIndex::kSfa) = sfa.operand;
    gemm.operand(OperandIndex::kB) = b.operand;
    gemm.operand(OperandIndex::kSfb) = sfb.operand;
    gemm.operand(OperandIndex::kD) = d.operand;
    std::vector<Product> products;
    // Quantized A must outlive the products that look at it.
    std::vector<std::unique_ptr<reference::Quantized>> quantized;
    const std::vector<std::byte> c_bytes(d.mapping.data(), d.mapping.data() + d.mapping.byte_size());
    const auto add = [&](int64_t group, int64_t begin, int64_t end) {
      const auto of = [&](const Tensor& tensor) {
        if (tensor.operand.memory == nullptr) return Matrix{};
        const Matrix whole = masked ? tensor.Group(group) : tensor.View();
        return whole.Window(begin, end - begin, 0, whole.columns);
      };
      const auto of_b = [&](const Tensor& tensor) {
        if (tensor.operand.memory == nullptr) return Matrix{};
        return groups > 0 ? tensor.Group(group) : tensor.View();
      };
      Product product{{of(a), of(sfa), 1}, {of_b(b), of_b(sfb), c.scaling == Scaling::k1D2D ? 128 : 1}, {}, of(d)};
      if (fp8 && c.a == DType::kBf16) {
        quantized.push_back(
            std::make_unique<reference::Quantized>(reference::Quantize(product.a.values, QuantizeBlock::k1x128)));
        product.a.values = reference::RowMajor(quantized.back()->q.data(), DType::kE4m3, end - begin, c.k);
        product.a.sf = reference::RowMajor(quantized.back()->sf.data(), DType::kF32, end - begin, k_blocks);
      }
      if (c.accumulate) {
        product.c = product.d;
        product.c.data = c_bytes.data() + (static_cast<const std::byte*>(product.d.data) - d.mapping.data());
      }
      d.Allow(product.d);
      if (end > begin && c.n > 0) products.push_back(product);
    };
    if (c.op == Op::kDense) add(0, 0, c.m);
    int64_t begin = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t rows = c.group_rows[static_cast<size_t>(group)];
      if (rows > 0) gemm.segments.push_back({group, begin, begin + rows});
      if (rows > 0) add(group, begin, begin + rows);
      if (!masked) begin += rows + 1;  // One row of padding after each group.
    }
    Snapshot(d);
    ExpectOk(gemm);
    ExpectRestUntouched(d);
    const reference::Error error = reference::CheckProducts(products, kMaxProducts);
    reference::Limits limits = reference::LimitsFor(c.d);
    // The promised mean error needs elements to average over; one element is off by up to half a unit in the last
    // place.
    if (c.d == DType::kBf16 && error.elements < kLeastElementsForMean) limits.relative_frobenius = kBf16HalfUnit;
    const absl::Status status = reference::CheckLimits(error, limits);
    EXPECT_TRUE(status.ok()) << status << " of " << error.elements;
  }

  std::unique_ptr<Device> device_;
  std::mt19937 random_{20};
  uint64_t regions_ = 0;
};

inline const std::vector<Layout>& Layouts() {
  static const std::vector<Layout> layouts = {{},
                                              {RegionKind::kHost, 32, true},
                                              {RegionKind::kTensor, 16, false},
                                              {RegionKind::kSharedMemory, 32, true},
                                              {RegionKind::kSharedMemory, 0, false}};
  return layouts;
}

struct Types {
  Scaling scaling;
  DType a;
};
inline constexpr Types kTypes[] = {{Scaling::k1D2D, DType::kE4m3},
                                   {Scaling::k1D2D, DType::kBf16},
                                   {Scaling::k1D1D, DType::kE4m3},
                                   {Scaling::k1D1D, DType::kBf16},
                                   {Scaling::kNone, DType::kBf16}};

}  // namespace gemmd

#endif  // GEMMD_TESTS_GPU_CPU_DEVICE_FIXTURE_H_
