// SPDX-License-Identifier: Apache-2.0
// What only the CUDA device has: memory of the GPU that outlives the object that allocated it, merged launches on
// resident weights, many batches in flight, bits that are the CPU device's where the rule leaves no choice. The
// operations themselves: tests/gpu/cpu_device_operations_test.cc.
#include "gpu/cuda/cuda_device.h"

#include "gpu/cpu/quantize.h"
#include "gpu/cuda/cuda_memory.h"
#include "proto/element_type.h"
#include "proto/shared_memory.h"

#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"
#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <dlfcn.h>
#include <memory>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Device>> device = CudaDevice::Open({});
    if (!device.ok()) GTEST_SKIP() << device.status();
    device_ = *std::move(device);
  }

  // Host memory that the device has mapped, filled with `value`.
  template <typename T>
  Operand HostMatrix(DType dtype, int64_t rows, int64_t columns, T value, T** data) {
    const uint64_t bytes = static_cast<uint64_t>(rows * columns) * sizeof(T);
    UniqueFd fd = *CreateSealedMemory(bytes);
    mappings_.push_back(*SharedMapping::Map(fd.get(), bytes, Access::kReadWrite));
    *data = reinterpret_cast<T*>(mappings_.back().data());
    std::fill_n(*data, rows * columns, value);
    auto memory = device_->Map({RegionKind::kHost, Access::kReadWrite, bytes}, std::move(fd));
    EXPECT_TRUE(memory.ok()) << memory.status();
    return Window(*memory, dtype, rows, columns);
  }

  Operand Window(std::shared_ptr<DeviceMemory> memory, DType dtype, int64_t rows, int64_t columns) {
    Operand operand;
    operand.memory = std::move(memory);
    operand.region = ++regions_;
    operand.dtype = dtype;
    operand.rank = 2;
    operand.shape = {rows, columns};
    operand.strides = {columns, 1};
    return operand;
  }

  std::vector<Reason> Run(Batch batch) {
    std::vector<Reason> reasons;
    device_->Submit(std::move(batch), [&](Batch, BatchResult result) { reasons = result.reasons; });
    device_->Wait();
    return reasons;
  }

  static Job Bf16Product(const Operand& a, const Operand& b, const Operand& d) {
    Job job;
    job.gemm.op = Op::kDense;
    job.gemm.scaling = Scaling::kNone;
    job.gemm.m = a.shape[0];
    job.gemm.n = b.shape[0];
    job.gemm.k = a.shape[1];
    job.gemm.operand(OperandIndex::kA) = a;
    job.gemm.operand(OperandIndex::kB) = b;
    job.gemm.operand(OperandIndex::kD) = d;
    return job;
  }

  static Job CopyBytes(const Operand& from, const Operand& to, int64_t bytes) {
    Job job;
    job.gemm.op = Op::kCopy;
    job.gemm.m = 1;
    job.gemm.k = bytes;
    job.gemm.operand(OperandIndex::kA) = from;
    job.gemm.operand(OperandIndex::kD) = to;
    return job;
  }

  std::unique_ptr<Device> device_;
  std::vector<SharedMapping> mappings_;
  uint64_t regions_ = 0;
};

TEST_F(CudaDeviceTest, ATensorSurvivesTheObjectThatAllocatedItAsLongAsItsDescriptorLives) {
  constexpr int64_t kBytes = 5'000'000;
  absl::StatusOr<Allocation> allocation = device_->Allocate(kBytes);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  uint8_t* bytes = nullptr;
  const Operand host = HostMatrix<uint8_t>(DType::kU8, 1, kBytes, 0x5a, &bytes);
  Batch batch;
  batch.jobs.push_back(CopyBytes(host, Window(allocation->memory, DType::kU8, 1, kBytes), kBytes));
  ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
  allocation->memory.reset();
  auto again = device_->Map({RegionKind::kTensor, Access::kReadWrite, kBytes}, std::move(allocation->fd));
  ASSERT_TRUE(again.ok()) << again.status();
  std::vector<uint8_t> read(kBytes);
  ASSERT_TRUE((*again)->ReadBytes(0, kBytes, read.data()).ok());
  EXPECT_EQ(read, std::vector<uint8_t>(kBytes, 0x5a));
}

TEST_F(CudaDeviceTest, JobsOnOneResidentBShareALaunchAndEachGetsItsOwnRows) {
  constexpr int64_t kN = 64, kK = 128;
  const uint16_t one = FloatToBf16(1.0f);
  uint16_t* unused = nullptr;
  const Operand b = HostMatrix<uint16_t>(DType::kBf16, kN, kK, one, &unused);
  Batch batch;
  std::vector<float*> results;
  for (int i = 1; i <= 5; ++i) {
    const Operand a = HostMatrix<uint16_t>(DType::kBf16, i * 3, kK, FloatToBf16(static_cast<float>(i)), &unused);
    float* d = nullptr;
    const Operand out = HostMatrix<float>(DType::kF32, i * 3, kN, -1.0f, &d);
    results.push_back(d);
    batch.jobs.push_back(Bf16Product(a, b, out));
  }
  for (const Reason& reason : Run(std::move(batch))) ASSERT_EQ(reason.rule, Rule::kNone);
  for (int i = 1; i <= 5; ++i) {
    for (int64_t at = 0; at < i * 3 * kN; ++at) {
      ASSERT_EQ(results[static_cast<size_t>(i - 1)][at], static_cast<float>(i) * kK)
          << "job " << i << " element " << at;
    }
  }
}

// Whole words, parts of them, and more than the reader takes at a time.
TEST_F(CudaDeviceTest, AnyBytesOfGpuMemoryCanBeRead) {
  constexpr int64_t kBytes = 700'003, kPiece = 256 << 10;
  absl::StatusOr<Allocation> allocation = device_->Allocate(kBytes);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  uint8_t* bytes = nullptr;
  const Operand host = HostMatrix<uint8_t>(DType::kU8, 1, kBytes, 0, &bytes);
  for (int64_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 256);
  Batch batch;
  batch.jobs.push_back(CopyBytes(host, Window(allocation->memory, DType::kU8, 1, kBytes), kBytes));
  ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
  const std::pair<int64_t, int64_t> ranges[] = {{0, 4},          {4, 4 * 31},     {12, 4 * 257},    {20, 4 * 4095},
                                                {3, 1},          {2, 5},          {0, kPiece},      {4, kPiece},
                                                {1, kPiece + 4}, {8, kPiece - 4}, {kPiece - 4, 12}, {0, kBytes},
                                                {5, kBytes - 5}, {kBytes - 3, 3}, {kBytes, 0}};
  for (const auto& [offset, size] : ranges) {
    std::vector<uint8_t> read(static_cast<size_t>(size) + 1, 0xee);
    const absl::Status status =
        allocation->memory->ReadBytes(static_cast<uint64_t>(offset), static_cast<uint64_t>(size), read.data());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(std::equal(read.begin(), read.end() - 1, bytes + offset)) << offset << " + " << size;
    EXPECT_EQ(read.back(), 0xee) << offset << " + " << size;
  }
  uint32_t beyond = 0;
  EXPECT_TRUE(absl::IsOutOfRange(allocation->memory->ReadBytes(kBytes - 3, sizeof(beyond), &beyond)));
}

// Rows of D in GPU memory that do not end at 16 bytes, which is what TMA writes at least; rows of A and B that do not
// either, with something beside them that must not be multiplied.
class RaggedRowsTest : public CudaDeviceTest, public ::testing::WithParamInterface<bool> {
 protected:
  static constexpr int64_t kRows = 133, kN = 5, kPitch = 8, kK = 133, kKPitch = 136;

  template <typename T>
  Operand GpuMatrix(DType dtype, int64_t rows, int64_t columns, T value) {
    T* unused = nullptr;
    const Operand host = HostMatrix<T>(dtype, rows, columns, value, &unused);
    const auto bytes = static_cast<int64_t>(static_cast<size_t>(rows * columns) * sizeof(T));
    auto allocation = device_->Allocate(static_cast<uint64_t>(bytes));
    EXPECT_TRUE(allocation.ok()) << allocation.status();
    Batch batch;
    batch.jobs.push_back(CopyBytes(host, Window(allocation->memory, DType::kU8, 1, bytes), bytes));
    EXPECT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
    return Window(allocation->memory, dtype, rows, columns);
  }

  // [rows, kK] of ones, 1000 in the rest of each row.
  Operand Ones(int64_t rows) {
    uint16_t* data = nullptr;
    Operand host = HostMatrix<uint16_t>(DType::kBf16, rows, kKPitch, FloatToBf16(1000.0f), &data);
    for (int64_t row = 0; row < rows; ++row) std::fill_n(data + row * kKPitch, kK, FloatToBf16(1.0f));
    if (GetParam()) {
      const Operand gpu = GpuMatrix<uint16_t>(DType::kBf16, rows, kKPitch, 0);
      Batch batch;
      batch.jobs.push_back(CopyBytes(host, gpu, rows * kKPitch * 2));
      EXPECT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
      host.memory = gpu.memory;
    }
    host.shape[1] = kK;
    return host;
  }

  // The product of `groups` matrices of kN rows each; D is to be filled in.
  Job Product(Op op, int64_t groups) {
    Job job = Bf16Product(Ones(kRows), Ones(groups * kN), {});
    job.gemm.op = op;
    job.gemm.n = kN;
    job.gemm.groups = groups;
    Operand& b = job.gemm.operand(OperandIndex::kB);
    if (op != Op::kDense) {
      b.rank = 3;
      b.shape = {groups, kN, kK};
      b.strides = {kN * kKPitch, kKPitch, 1};
    }
    return job;
  }

  template <typename T>
  std::vector<T> Read(const Operand& operand, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    EXPECT_TRUE(operand.memory->ReadBytes(0, values.size() * sizeof(T), values.data()).ok());
    return values;
  }

  template <typename T>
  static void Expect(const std::vector<T>& d, int64_t row_begin, int64_t row_end, T inside, T outside) {
    for (int64_t at = 0; at < static_cast<int64_t>(d.size()); ++at) {
      const int64_t row = at / kPitch;
      const bool computed = at % kPitch < kN && row >= row_begin && row < row_end;
      ASSERT_EQ(d[static_cast<size_t>(at)], computed ? inside : outside) << "row " << row << ", column " << at % kPitch;
    }
  }
};

TEST_P(RaggedRowsTest, OfADenseResultKeepWhatLiesBetweenThem) {
  Operand d = GpuMatrix<uint16_t>(DType::kBf16, kRows, kPitch, 0xeeee);
  d.shape[1] = kN;
  Batch batch;
  batch.jobs.push_back(Product(Op::kDense, 1));
  batch.jobs[0].gemm.operand(OperandIndex::kD) = d;
  ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
  Expect<uint16_t>(Read<uint16_t>(d, kRows * kPitch), 0, kRows, FloatToBf16(kK), 0xeeee);
}

TEST_P(RaggedRowsTest, OfASumKeepWhatLiesBetweenThem) {
  Operand d = GpuMatrix<float>(DType::kF32, kRows, kPitch, 0.5f);
  d.shape[1] = kN;
  Batch batch;
  batch.jobs.push_back(Product(Op::kDense, 1));
  batch.jobs[0].gemm.accumulate = true;
  batch.jobs[0].gemm.operand(OperandIndex::kD) = d;
  ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
  Expect<float>(Read<float>(d, kRows * kPitch), 0, kRows, kK + 0.5f, 0.5f);
}

TEST_P(RaggedRowsTest, OfAGroupedResultKeepWhatLiesBetweenThem) {
  Operand d = GpuMatrix<uint16_t>(DType::kBf16, kRows, kPitch, 0xeeee);
  d.shape[1] = kN;
  Batch batch;
  batch.jobs.push_back(Product(Op::kMGroupedContiguous, 3));
  batch.jobs[0].gemm.segments = {{0, 1, 3}, {1, 3, 70}, {2, 70, kRows - 2}};  // Groups end inside of tiles.
  batch.jobs[0].gemm.operand(OperandIndex::kD) = d;
  ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
  Expect<uint16_t>(Read<uint16_t>(d, kRows * kPitch), 1, kRows - 2, FloatToBf16(kK), 0xeeee);
}

TEST_P(RaggedRowsTest, OfAMaskedResultKeepWhatLiesBetweenThem) {
  if (!GetParam()) GTEST_SKIP() << "masked_m stays on the GPU only beside operands that are there";
  Operand d = GpuMatrix<uint16_t>(DType::kBf16, kRows, kPitch, 0xeeee);
  d.rank = 3;
  d.shape = {1, kRows, kN};
  d.strides = {kRows * kPitch, kPitch, 1};
  Operand masked_m = GpuMatrix<int32_t>(DType::kI32, 1, 1, 67);
  masked_m.rank = 1;
  masked_m.shape = {1};
  masked_m.strides = {1};
  Batch batch;
  batch.jobs.push_back(Product(Op::kMGroupedMasked, 1));
  Gemm& gemm = batch.jobs[0].gemm;
  Operand& a = gemm.operand(OperandIndex::kA);
  a.rank = 3;
  a.shape = {1, kRows, kK};
  a.strides = {kRows * kKPitch, kKPitch, 1};
  gemm.masked_on_device = true;
  gemm.segments = {{0, 0, kRows}};
  gemm.operand(OperandIndex::kGroups) = masked_m;
  gemm.operand(OperandIndex::kD) = d;
  Batch done;
  device_->Submit(std::move(batch), [&](Batch returned, const BatchResult& result) {
    EXPECT_EQ(result.reasons[0].rule, Rule::kNone);
    done = std::move(returned);
  });
  device_->Wait();
  Expect<uint16_t>(Read<uint16_t>(d, kRows * kPitch), 0, 67, FloatToBf16(kK), 0xeeee);
  // What was computed is known now.
  ASSERT_EQ(done.jobs[0].gemm.segments.size(), 1u);
  EXPECT_EQ(done.jobs[0].gemm.segments[0].end, 67);
}

INSTANTIATE_TEST_SUITE_P(Inputs, RaggedRowsTest, ::testing::Bool(),
                         [](const auto& param_info) { return param_info.param ? "on_the_gpu" : "on_the_host"; });

TEST_F(CudaDeviceTest, ManyBatchesInFlightAllComplete) {
  constexpr int64_t kM = 256, kN = 512, kK = 512;
  uint16_t* unused = nullptr;
  const Operand a = HostMatrix<uint16_t>(DType::kBf16, kM, kK, FloatToBf16(1.0f), &unused);
  const Operand b = HostMatrix<uint16_t>(DType::kBf16, kN, kK, FloatToBf16(2.0f), &unused);
  absl::Mutex mutex;
  int failed = 0;
  std::vector<float*> results;
  for (int i = 0; i < 40; ++i) {
    float* d = nullptr;
    const Operand out = HostMatrix<float>(DType::kF32, kM, kN, -1.0f, &d);
    results.push_back(d);
    Batch batch;
    batch.jobs.push_back(Bf16Product(a, b, out));
    device_->Submit(std::move(batch), [&](Batch, BatchResult result) {
      absl::MutexLock lock(&mutex);
      failed += result.reasons[0].rule != Rule::kNone;
    });
  }
  device_->Wait();
  EXPECT_EQ(failed, 0);
  for (const float* d : results) EXPECT_EQ(std::count(d, d + kM * kN, 2.0f * kK), kM * kN);
}

// The operands lie apart from each other, as views of wider matrices do, or side by side.
TEST_F(CudaDeviceTest, RowsThatLieApartAreCopiedAsThoseSideBySide) {
  constexpr int64_t kM = 37, kN = 72, kK = 144;
  const uint16_t one = FloatToBf16(1.0f);
  for (const int64_t a_gap : {0, 8, 200}) {
    for (const int64_t d_gap : {0, 4, 60}) {
      uint16_t *a_data = nullptr, *unused = nullptr;
      float* d_data = nullptr;
      Operand a = HostMatrix<uint16_t>(DType::kBf16, kM, kK + a_gap, FloatToBf16(1000.0f), &a_data);
      Operand d = HostMatrix<float>(DType::kF32, kM, kN + d_gap, -1.0f, &d_data);
      for (int64_t row = 0; row < kM; ++row) {
        std::fill_n(a_data + row * (kK + a_gap), kK, FloatToBf16(static_cast<float>(row)));
      }
      a.shape[1] = kK;
      d.shape[1] = kN;
      Batch batch;
      batch.jobs.push_back(Bf16Product(a, HostMatrix<uint16_t>(DType::kBf16, kN, kK, one, &unused), d));
      ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
      for (int64_t row = 0; row < kM; ++row) {
        for (int64_t column = 0; column < kN + d_gap; ++column) {
          const float expected = column < kN ? static_cast<float>(row * kK) : -1.0f;
          ASSERT_EQ(d_data[row * (kN + d_gap) + column], expected)
              << "gaps " << a_gap << " " << d_gap << " row " << row << " column " << column;
        }
      }
    }
  }
}

// Scale factors and elements of X by the CPU device's own function.
struct Quantized {
  std::vector<uint8_t> q;
  std::vector<float> sf;
};

Quantized QuantizeOnCpu(DType dtype, const void* x, int64_t m, int64_t k, int64_t block_rows) {
  const int64_t sf_rows = CeilDiv(m, block_rows);
  const int64_t blocks = CeilDiv(k, 128);
  Quantized result{std::vector<uint8_t>(static_cast<size_t>(m * k)),
                   std::vector<float>(static_cast<size_t>(sf_rows * blocks))};
  const QuantizeViews views{{static_cast<std::byte*>(const_cast<void*>(x)), dtype, m, k, k, 1},
                            {reinterpret_cast<std::byte*>(result.q.data()), DType::kE4m3, m, k, k, 1},
                            {reinterpret_cast<std::byte*>(result.sf.data()), DType::kF32, sf_rows, blocks, blocks, 1},
                            block_rows};
  for (int64_t row = 0; row < sf_rows; ++row) QuantizeBlockRow(BestInstructionSet(), views, row);
  return result;
}

TEST_F(CudaDeviceTest, QuantizesToTheSameBitsAsTheCpuDevice) {
  constexpr int64_t kM = 130, kK = 1168, kBlocks = 10;
  // Largest magnitudes of successive blocks. Those below 3.2e-43 are zero when FP32 divides them by 448, and the next
  // ones are subnormal.
  const float largest[] = {0.0f, 1e-45f, 1e-43f, 3.1e-43f, 3.2e-43f, 1e-40f, 1e-36f, 1.0f, 4e4f, 3e38f};
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const int64_t block_rows : {1, 128}) {
      const auto value = [&](int64_t i) {
        const int64_t row = i / kK, k = i % kK;
        const float part = static_cast<float>((row * 31 + k * 17) % 101) / 100.0f;
        return (i % 3 == 0 ? -part : part) * largest[(k / 128 + row / block_rows) % kBlocks];
      };
      Job job;
      job.gemm.op = Op::kQuantize;
      job.gemm.quantize_block = block_rows == 1 ? QuantizeBlock::k1x128 : QuantizeBlock::k128x128;
      job.gemm.m = kM;
      job.gemm.k = kK;
      const void* x = nullptr;
      if (dtype == DType::kF32) {
        float* data = nullptr;
        job.gemm.operand(OperandIndex::kA) = HostMatrix<float>(dtype, kM, kK, 0.0f, &data);
        for (int64_t i = 0; i < kM * kK; ++i) data[i] = value(i);
        x = data;
      } else {
        uint16_t* data = nullptr;
        job.gemm.operand(OperandIndex::kA) = HostMatrix<uint16_t>(dtype, kM, kK, 0, &data);
        for (int64_t i = 0; i < kM * kK; ++i) data[i] = FloatToBf16(value(i));
        x = data;
      }
      uint8_t* q = nullptr;
      float* sf = nullptr;
      const int64_t sf_rows = CeilDiv(kM, block_rows);
      job.gemm.operand(OperandIndex::kD) = HostMatrix<uint8_t>(DType::kE4m3, kM, kK, 0xee, &q);
      job.gemm.operand(OperandIndex::kSfd) = HostMatrix<float>(DType::kF32, sf_rows, kBlocks, -1.0f, &sf);
      Batch batch;
      batch.jobs.push_back(std::move(job));
      ASSERT_EQ(Run(std::move(batch))[0].rule, Rule::kNone);
      const Quantized expected = QuantizeOnCpu(dtype, x, kM, kK, block_rows);
      EXPECT_EQ(std::vector<float>(sf, sf + sf_rows * kBlocks), expected.sf) << block_rows;
      EXPECT_EQ(std::vector<uint8_t>(q, q + kM * kK), expected.q) << block_rows;
    }
  }
}

TEST_F(CudaDeviceTest, TooLargeAnAllocationIsRefusedAndTheNextOneSucceeds) {
  EXPECT_TRUE(absl::IsResourceExhausted(device_->Allocate(uint64_t{1} << 40).status()));
  EXPECT_TRUE(device_->Allocate(1 << 20).ok());
  EXPECT_TRUE(device_->Healthy().ok());
}

// The driver says what kernels may do there.
TEST_F(CudaDeviceTest, MemoryThatIsLentForReadingIsMappedSo) {
  const auto access = reinterpret_cast<decltype(&cuMemGetAccess)>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "cuMemGetAccess"));
  ASSERT_NE(access, nullptr);
  const auto allocation = device_->Allocate(4096);
  ASSERT_TRUE(allocation.ok()) << allocation.status();
  const CUmemLocation location{CU_MEM_LOCATION_TYPE_DEVICE, 0};
  for (const auto& [asked, expected] : {std::pair(Access::kReadOnly, CU_MEM_ACCESS_FLAGS_PROT_READ),
                                        std::pair(Access::kReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE)}) {
    const auto memory = device_->Map({RegionKind::kDevice, asked, 4096}, allocation->fd.Duplicate());
    ASSERT_TRUE(memory.ok()) << memory.status();
    const char* const address = dynamic_cast<const CudaMemory&>(**memory).address();
    unsigned long long flags = 0;
    ASSERT_EQ(access(&flags, &location, reinterpret_cast<CUdeviceptr>(address)), CUDA_SUCCESS);
    EXPECT_EQ(flags, static_cast<unsigned long long>(expected));
  }
}

TEST_F(CudaDeviceTest, AMemfdIsNotATensor) {
  const auto memory = device_->Map({RegionKind::kTensor, Access::kReadWrite, 4096}, *CreateSealedMemory(4096));
  EXPECT_TRUE(absl::IsInvalidArgument(memory.status())) << memory.status();
  EXPECT_TRUE(device_->Healthy().ok());
}

}  // namespace
}  // namespace gemmd
