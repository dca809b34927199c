// SPDX-License-Identifier: Apache-2.0
#include "tests/device/quantize_check.h"

#include "proto/element_type.h"

#include "absl/strings/str_cat.h"
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace gemmd {
namespace {

constexpr int64_t kGuardBytes = 256;
constexpr unsigned char kPattern = 0xff;  // NaN in either output.

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What lies where in the buffers; in elements.
struct Layout {
  explicit Layout(const QuantizeCase& q)
      : element(q.input == QuantizeInput::kBf16 ? 2 : 4),
        pitch(CeilDiv(q.k, 16) * 16 + q.padding),
        blocks(CeilDiv(q.k, 128)),
        block_rows(q.shape == QuantizeShape::kRow ? 1 : 128),
        sf_rows(CeilDiv(q.m, block_rows)),
        sf_row_stride(q.sf_m_major ? 1 : blocks),
        sf_block_stride(q.sf_m_major ? CeilDiv(sf_rows, 4) * 4 : 1),
        sf_count(q.sf_m_major ? blocks * sf_block_stride : sf_rows * blocks) {}
  int64_t element;  // Bytes of x.
  int64_t pitch;    // Of x and q.
  int64_t blocks;
  int64_t block_rows;
  int64_t sf_rows;
  int64_t sf_row_stride;
  int64_t sf_block_stride;
  int64_t sf_count;
};

using Bytes = std::vector<unsigned char>;

float ValueOf(const Bytes& x, const Layout& layout, int64_t row, int64_t column) {
  const unsigned char* at = x.data() + (row * layout.pitch + column) * layout.element;
  if (layout.element == 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, at, sizeof(bits));
    return Bf16ToFloat(bits);
  }
  float value = 0;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// Fills in one block of q and its scale factor.
void QuantizeBlockOf(const QuantizeCase& quantize, const Layout& layout, const Bytes& x, int64_t sf_row, int64_t block,
                     Bytes* q, Bytes* sf) {
  const int64_t row_begin = sf_row * layout.block_rows;
  const int64_t row_end = std::min(quantize.m, row_begin + layout.block_rows);
  const int64_t k_end = std::min(quantize.k, (block + 1) * 128);
  float largest = 0;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t k = block * 128; k < k_end; ++k) largest = std::max(largest, std::fabs(ValueOf(x, layout, row, k)));
  }
  const float quotient = largest / kE4m3Max;
  const float scale = quotient == 0 ? 1.0f : quotient;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t k = block * 128; k < k_end; ++k) {
      (*q)[static_cast<size_t>(kGuardBytes + row * layout.pitch + k)] = FloatToE4m3(ValueOf(x, layout, row, k) / scale);
    }
  }
  const int64_t at = sf_row * layout.sf_row_stride + block * layout.sf_block_stride;
  std::memcpy(sf->data() + kGuardBytes + at * 4, &scale, sizeof(scale));
}

Bytes CopyOf(const unsigned char* gpu, int64_t count) {
  Bytes bytes(static_cast<size_t>(count));
  Must(cudaMemcpy(bytes.data(), gpu, bytes.size(), cudaMemcpyDeviceToHost), "reading what was quantized");
  return bytes;
}

std::string Difference(const char* what, const Bytes& expected, const Bytes& got) {
  const auto [e, g] = std::mismatch(expected.begin(), expected.end(), got.begin());
  if (e == expected.end()) return "";
  return absl::StrCat(what, ": byte ", (e - expected.begin()) - kGuardBytes, " is ", *g, ", expected ", *e, "; ");
}

}  // namespace

std::string QuantizeCase::Name() const {
  return absl::StrCat("quantize ", input == QuantizeInput::kBf16 ? "bf16" : "f32",
                      shape == QuantizeShape::kRow ? " 1x128" : " 128x128", " M", m, " K", k,
                      padding > 0 ? " padded" : "", sf_m_major ? " sf-m" : "");
}

std::string CheckQuantize(const QuantizeCase& quantize, TestKernels& kernels,
                          const std::function<absl::Status(const QuantizeArgs&)>& run) {
  const Layout layout(quantize);
  int64_t count = quantize.m * layout.pitch;
  const DeviceBuffer x(count * layout.element);
  void* x_data = x.data();
  uint64_t seed = quantize.seed;
  void* parameters[] = {&x_data, &count, &seed};
  kernels.Launch(layout.element == 2 ? "FillBf16" : "FillF32", count, parameters);
  // A block of zeros where there are several.
  if (layout.sf_rows > 1)
    Must(cudaMemset(x.data(), 0, static_cast<size_t>(layout.block_rows * layout.pitch * layout.element)), "zeros");
  const DeviceBuffer q(count + 2 * kGuardBytes);
  const DeviceBuffer sf(layout.sf_count * 4 + 2 * kGuardBytes);
  for (const DeviceBuffer* output : {&q, &sf})
    Must(cudaMemset(output->data(), kPattern, static_cast<size_t>(output->byte_size())), "clearing");
  Must(cudaDeviceSynchronize(), "filling operands");
  const absl::Status status = run({x.data(), layout.pitch, q.data() + kGuardBytes, layout.pitch,
                                   reinterpret_cast<float*>(sf.data() + kGuardBytes), layout.sf_row_stride,
                                   layout.sf_block_stride, quantize.m, quantize.k});
  if (!status.ok()) return status.ToString();

  const Bytes input = CopyOf(x.data(), count * layout.element);
  Bytes expected_q(static_cast<size_t>(q.byte_size()), kPattern);
  Bytes expected_sf(static_cast<size_t>(sf.byte_size()), kPattern);
  for (int64_t row = 0; row < layout.sf_rows; ++row) {
    for (int64_t block = 0; block < layout.blocks; ++block)
      QuantizeBlockOf(quantize, layout, input, row, block, &expected_q, &expected_sf);
  }
  return absl::StrCat(Difference("q", expected_q, CopyOf(q.data(), q.byte_size())),
                      Difference("scale factors", expected_sf, CopyOf(sf.data(), sf.byte_size())));
}

}  // namespace gemmd
