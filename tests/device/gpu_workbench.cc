// SPDX-License-Identifier: Apache-2.0
#include "tests/device/gpu_workbench.h"

#include "tests/device/test_kernels.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace gemmd {
namespace {

constexpr int64_t kGuardBytes = 4096;
constexpr unsigned char kPattern = 0xff;  // NaN in every type that D may have.

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements of a row whose pitch is a multiple of 16 bytes.
int64_t PitchOf(int64_t columns, int64_t element) { return CeilDiv(columns * element, 16) * 16 / element; }

// Layouts of the kernels' structs in test_kernels.h.
struct CheckArgs {
  const void* a;
  int64_t a_batch, a_row;
  const void* b;
  int64_t b_batch, b_row;
  const float* sfa;
  int64_t sfa_batch, sfa_row, sfa_block;
  const float* sfb;
  int64_t sfb_batch, sfb_row, sfb_block;
  const void* d;
  int64_t d_batch, d_row;
  const float* before;
  int n, sfb_rows, bf16, f32_out, row_step;
  Segment segment;
};

struct CheckResult {
  double error2, reference2;
  uint64_t largest_error, bad, count;
};

struct GuardArgs {
  const unsigned char* buffer;
  int64_t bytes, d_offset, d_batch, d_row;
  int element, n, segments;
  unsigned char pattern;
  const Segment* list;
  const unsigned char* before;
};

struct DifferencesArgs {
  const unsigned char *a, *b;
  int64_t bytes, d_offset, row_bytes, skip_from, skip_to;
};

}  // namespace

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FATAL %s: %s\n", what, cudaGetErrorString(error));
  std::fflush(stdout);
  std::_Exit(3);
}

DeviceBuffer::DeviceBuffer(int64_t byte_size) : byte_size_(std::max<int64_t>(byte_size, 256)) {
  Must(cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<size_t>(byte_size_)), "allocating");
}
DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

TestKernels::TestKernels() {
  static const KernelSource source{"test_kernels.cuh", kTestKernels};
  const absl::StatusOr<NvrtcCompiler> compiler =
      NvrtcCompiler::Create(absl::MakeConstSpan(&source, 1), {"test_kernels.cuh"});
  if (!compiler.ok()) {
    std::printf("FATAL %s\n", std::string(compiler.status().message()).c_str());
    std::exit(3);
  }
  for (const char* name : {"FillE4m3", "FillBf16", "FillF32", "FillScales", "Check", "Guard", "Differences", "Empty",
                           "Empty1", "Empty4", "Empty6"}) {
    std::string log;
    const auto kernel = compiler->Compile(compiler->KeyOf(name), &log);
    if (!kernel.ok()) {
      std::printf("FATAL test kernel: %s\n", log.c_str());
      std::exit(3);
    }
    cudaLibrary_t library = nullptr;
    Must(cudaLibraryLoadData(&library, kernel->cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0), "loading");
    Must(cudaLibraryGetKernel(&kernels_[name], library, kernel->symbol.c_str()), "finding");
    libraries_.push_back(library);
  }
}

void TestKernels::Launch(const char* name, int64_t work, void** parameters) {
  const unsigned blocks = static_cast<unsigned>(std::clamp<int64_t>(CeilDiv(work, 256), 1, 8192));
  Must(cudaLaunchKernel(kernels_.at(name), dim3(blocks), dim3(256), parameters, 0, nullptr), name);
}

std::string Product::Name() const {
  std::string name = absl::StrCat(kind, " M", m, " N", n, " K", k);
  if (!groups.empty()) {
    absl::StrAppend(&name, " groups ", groups.size(), " [");
    for (size_t i = 0; i < std::min<size_t>(groups.size(), 6); ++i) absl::StrAppend(&name, i ? "," : "", groups[i]);
    absl::StrAppend(&name, groups.size() > 6 ? ",..]" : "]");
  }
  absl::StrAppend(&name,
                  scaling == KernelScaling::kRowBlock ? " 1d2d"
                  : scaling == KernelScaling::kRowRow ? " 1d1d"
                                                      : " bf16",
                  output == KernelOutput::kBf16  ? "->bf16"
                  : output == KernelOutput::kF32 ? "->f32"
                                                 : "->f32+=",
                  sfa_m_major ? " sfa-m" : "", sfb_m_major ? " sfb-m" : "");
  return name;
}

Workbench::Workbench(const Product& product, TestKernels& kernels) : product_(product), kernels_(kernels) {
  call_.scaling = product.scaling;
  call_.output = product.output;
  const bool depth = product.kind == "kgrouped";
  const bool masked = product.kind == "masked";
  const bool rows = product.kind == "contiguous" || masked;
  const bool bf16 = product.scaling == KernelScaling::kBf16;
  const int64_t element = bf16 ? 2 : 1;
  const auto operand = [&](int64_t count, uint64_t seed) {
    buffers_.push_back(std::make_unique<DeviceBuffer>(count * element));
    void* data = buffers_.back()->data();
    void* parameters[] = {&data, &count, &seed};
    kernels_.Launch(bf16 ? "FillBf16" : "FillE4m3", count, parameters);
    return data;
  };
  const int64_t groups = static_cast<int64_t>(product.groups.size());
  int64_t total = 0;
  int64_t total_blocks = 0;
  for (const int64_t g : product.groups) {
    total += g;
    total_blocks += CeilDiv(g, 128);
  }
  const int64_t m = product.kind == "contiguous" ? total : product.m;
  const int64_t batches = masked ? groups : 1;
  const int64_t n = product.n;
  const int64_t k = product.k;
  if (depth) {
    char* a = static_cast<char*>(operand(m * total, product.seed));
    char* b = static_cast<char*>(operand(n * total, product.seed + 1));
    int block = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t kg = product.groups[static_cast<size_t>(g)];
      call_.segment_a.push_back({a, 1, m, kg, m * kg, kg});
      call_.segment_b.push_back({b, 1, n, kg, n * kg, kg});
      call_.segments.push_back({static_cast<int>(g), 0, 0, static_cast<int>(m), static_cast<int>(kg), block});
      a += m * kg * element;
      b += n * kg * element;
      block += static_cast<int>(CeilDiv(kg, 128));
    }
  } else {
    // What lies between rows is as random as they are.
    const int64_t pitch = PitchOf(k, element);
    call_.a = {operand(batches * m * pitch, product.seed), batches, m, k, m * pitch, pitch};
    const int64_t b_groups = rows ? groups : 1;
    call_.b = {operand(b_groups * n * pitch, product.seed + 1), b_groups, n, k, n * pitch, pitch};
    int64_t row = 0;
    for (int64_t g = 0; g < (rows ? groups : 1); ++g) {
      const int64_t count = rows ? product.groups[static_cast<size_t>(g)] : m;
      const int64_t begin = masked ? 0 : row;
      row += count;
      if (count == 0) continue;
      call_.segments.push_back({static_cast<int>(masked ? g : 0), static_cast<int>(rows ? g : 0),
                                static_cast<int>(begin), static_cast<int>(begin + count), static_cast<int>(k), 0});
    }
    call_.clip_rows = rows;
  }
  if (!bf16) {
    const int64_t blocks = depth ? total_blocks : CeilDiv(k, 128);
    const bool row_row = product.scaling == KernelScaling::kRowRow;
    MakeScales(batches, m, blocks, product.sfa_m_major, product.seed + 2, &call_.sfa);
    MakeScales(rows ? groups : 1, row_row ? n : CeilDiv(n, 128), blocks, product.sfb_m_major, product.seed + 3,
               &call_.sfb);
    if (depth) call_.sfa.batch_stride = call_.sfb.batch_stride = 0;  // Batches are D's alone.
  }
  const int64_t out_element = product.output == KernelOutput::kBf16 ? 2 : 4;
  const int64_t d_batches = depth ? groups : batches;
  const int64_t d_row = PitchOf(n, out_element) + product.d_padding;
  output_ = std::make_unique<DeviceBuffer>(2 * kGuardBytes + d_batches * m * d_row * out_element);
  call_.d = {output_->data() + kGuardBytes, d_batches, m, n, m * d_row, d_row};
  if (product.output == KernelOutput::kF32Add) {
    before_ = std::make_unique<DeviceBuffer>(output_->byte_size());
    uint64_t seed = product.seed + 9;
    int64_t count = output_->byte_size() / 4;
    void* data = before_->data();
    void* parameters[] = {&data, &count, &seed};
    kernels_.Launch("FillF32", count, parameters);
  }
  ResetOutput();
}

float* Workbench::MakeScales(int64_t batches, int64_t rows, int64_t blocks, bool m_major, uint64_t seed,
                             ScaleView* view) {
  const int64_t pitch = m_major ? CeilDiv(rows, 4) * 4 : blocks;
  int64_t count = batches * (m_major ? pitch * blocks : rows * pitch);
  buffers_.push_back(std::make_unique<DeviceBuffer>(count * 4));
  void* data = buffers_.back()->data();
  void* parameters[] = {&data, &count, &seed};
  kernels_.Launch("FillScales", count, parameters);
  *view = {static_cast<float*>(data), batches > 0 ? count / batches : 0, m_major ? 1 : pitch, m_major ? pitch : 1};
  return static_cast<float*>(data);
}

void Workbench::ResetOutput() {
  const size_t bytes = static_cast<size_t>(output_->byte_size());
  if (before_ != nullptr) {
    Must(cudaMemcpy(output_->data(), before_->data(), bytes, cudaMemcpyDeviceToDevice), "resetting");
  } else {
    Must(cudaMemset(output_->data(), kPattern, bytes), "resetting");
  }
}

CheckOutcome Workbench::Check(int row_step) {
  DeviceBuffer result(sizeof(CheckResult));
  Must(cudaMemset(result.data(), 0, sizeof(CheckResult)), "clearing");
  for (size_t i = 0; i < call_.segments.size(); ++i) {
    const bool depth = !call_.segment_a.empty();
    const MatrixView& a = depth ? call_.segment_a[i] : call_.a;
    const MatrixView& b = depth ? call_.segment_b[i] : call_.b;
    CheckArgs args = {a.data,
                      depth ? 0 : a.batch_stride,
                      a.row_stride,
                      b.data,
                      depth ? 0 : b.batch_stride,
                      b.row_stride,
                      call_.sfa.data,
                      depth ? 0 : call_.sfa.batch_stride,
                      call_.sfa.row_stride,
                      call_.sfa.block_stride,
                      call_.sfb.data,
                      depth ? 0 : call_.sfb.batch_stride,
                      call_.sfb.row_stride,
                      call_.sfb.block_stride,
                      call_.d.data,
                      call_.d.batch_stride,
                      call_.d.row_stride,
                      before_ ? reinterpret_cast<const float*>(before_->data() + kGuardBytes) : nullptr,
                      static_cast<int>(call_.n()),
                      call_.scaling == KernelScaling::kRowBlock ? 128 : 1,
                      call_.scaling == KernelScaling::kBf16,
                      call_.output != KernelOutput::kBf16,
                      row_step,
                      call_.segments[i]};
    void* pointer = result.data();
    void* parameters[] = {&args, &pointer};
    kernels_.Launch("Check", (call_.segments[i].row_end - call_.segments[i].row_begin) * call_.n() / row_step,
                    parameters);
  }
  CheckResult r;
  Must(cudaMemcpy(&r, result.data(), sizeof(r), cudaMemcpyDeviceToHost), "reading the check");
  CheckOutcome outcome;
  outcome.not_finite = r.bad;
  double largest = 0;
  std::memcpy(&largest, &r.largest_error, sizeof(largest));
  const double rms = r.count > 0 ? std::sqrt(r.reference2 / static_cast<double>(r.count)) : 0;
  outcome.frobenius = r.reference2 > 0 ? std::sqrt(r.error2 / r.reference2) : std::sqrt(r.error2);
  outcome.largest = rms > 0 ? largest / rms : largest;
  outcome.outside = BytesOutside();
  const bool bf16 = call_.output == KernelOutput::kBf16;
  // The mean error of a few elements may be that of the worst one: half a unit of BF16 is 2^-9.
  const bool few = r.count < 4096;
  outcome.ok = outcome.not_finite == 0 && outcome.outside == 0 &&
               outcome.frobenius <= (bf16 ? (few ? 4e-3 : 2e-3) : (few ? 5e-4 : 2e-4)) &&
               outcome.largest <= (bf16 ? 0.04 : 0.005);
  return outcome;
}

uint64_t Workbench::BytesOutside() {
  const size_t list_bytes = call_.segments.size() * sizeof(Segment);
  DeviceBuffer list(static_cast<int64_t>(list_bytes));
  Must(cudaMemcpy(list.data(), call_.segments.data(), list_bytes, cudaMemcpyHostToDevice), "list");
  DeviceBuffer changed(8);
  Must(cudaMemset(changed.data(), 0, 8), "clearing");
  const int element = ElementBytes();
  GuardArgs args = {output_->data(),
                    output_->byte_size(),
                    kGuardBytes,
                    call_.d.batch_stride,
                    call_.d.row_stride,
                    element,
                    static_cast<int>(PitchOf(call_.n(), element)),
                    static_cast<int>(call_.segments.size()),
                    kPattern,
                    reinterpret_cast<const Segment*>(list.data()),
                    before_ ? before_->data() : nullptr};
  void* pointer = changed.data();
  void* parameters[] = {&args, &pointer};
  kernels_.Launch("Guard", output_->byte_size(), parameters);
  uint64_t count = 0;
  Must(cudaMemcpy(&count, changed.data(), 8, cudaMemcpyDeviceToHost), "reading the guards");
  return count;
}

void Workbench::Keep() {
  kept_ = std::make_unique<DeviceBuffer>(output_->byte_size());
  Must(cudaMemcpy(kept_->data(), output_->data(), static_cast<size_t>(output_->byte_size()), cudaMemcpyDeviceToDevice),
       "keeping");
}

uint64_t Workbench::DifferencesFromKept() {
  DeviceBuffer different(8);
  Must(cudaMemset(different.data(), 0, 8), "clearing");
  const int element = ElementBytes();
  DifferencesArgs args = {output_->data(),
                          kept_->data(),
                          output_->byte_size(),
                          kGuardBytes,
                          call_.d.row_stride * element,
                          call_.n() * element,
                          PitchOf(call_.n(), element) * element};
  void* pointer = different.data();
  void* parameters[] = {&args, &pointer};
  kernels_.Launch("Differences", args.bytes, parameters);
  uint64_t count = 0;
  Must(cudaMemcpy(&count, different.data(), 8, cudaMemcpyDeviceToHost), "reading differences");
  return count;
}

double Workbench::flops() const {
  double sum = 0;
  for (const Segment& s : call_.segments) {
    sum += 2.0 * (s.row_end - s.row_begin) * static_cast<double>(call_.n()) * s.k;
  }
  return sum;
}

int64_t Workbench::bytes() const {
  int64_t sum = 0;
  for (const auto& buffer : buffers_) sum += buffer->byte_size();
  return sum + output_->byte_size();
}

}  // namespace gemmd
