// SPDX-License-Identifier: Apache-2.0
// One operation with random operands in the memory of one transport, ready to be sent and checked. Used by `gemmctl
// gemm`, `gemmctl demo` and gemmload.
#ifndef GEMMD_CLIENT_PROBLEM_H_
#define GEMMD_CLIENT_PROBLEM_H_

#include "client/client.h"
#include "client/operand_memory.h"
#include "client/reference.h"
#include "proto/job.h"

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {

absl::StatusOr<Op> ParseOp(
    absl::string_view name);  // dense, m_grouped_contiguous (contiguous), m_grouped_masked (masked), ...
absl::StatusOr<Scaling> ParseScaling(absl::string_view name);  // 1d2d, 1d1d, none (bf16).

struct ProblemSpec {
  Op op = Op::kDense;
  Scaling scaling = Scaling::k1D2D;
  DType d_dtype = DType::kBf16;
  bool bf16_a = false;  // A is BF16 on an FP8 B: the daemon quantizes it per 1x128. Dense and m-grouped.
  GroupEncoding encoding = GroupEncoding::kOffsets;  // Contiguous only.
  QuantizeBlock block = QuantizeBlock::k1x128;       // Quantize only.
  bool accumulate = false;                           // D starts random; it is added to. Not inline.
  int64_t m = 0;  // Rows of A in all groups together; masked: of each group at most; k-grouped: of each group.
  int64_t n = 0;
  int64_t k = 0;                          // k-grouped: of all groups together.
  int64_t groups = 0;                     // 0 for dense and quantize.
  std::vector<int64_t> group_sizes = {};  // Rows (K for k-grouped) of each group; empty: as even as can be.
};

// Useful floating-point operations, and rows of D that are computed.
double FlopsOf(const ProblemSpec& spec);
int64_t RowsOf(const ProblemSpec& spec);
std::string ShapeText(const ProblemSpec& spec);  // "64x2112x7168", "8 x 16x4096x7168".

// B and SFB of a problem: shared by any number of problems with the same n, k, groups and scaling.
class Weights {
 public:
  // Random for `seed`, and unlike any A of a problem with the same seed.
  // `shared_name`: kTensor only; not empty: other sessions of this user find the tensors by that name plus ".b",
  // ".sfb".
  static absl::StatusOr<std::shared_ptr<const Weights>> Create(Client* client, const ProblemSpec& spec,
                                                               Transport transport, uint64_t seed,
                                                               const std::string& shared_name = "");
  // The shared tensor `name` and, for FP8, its scale factors `name`.sf, which the daemon has. Their values are not
  // known here: problems with them cannot be checked.
  static std::shared_ptr<const Weights> Named(const ProblemSpec& spec, const std::string& name);
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  const TensorView& b() const { return b_; }
  const TensorView& sfb() const { return sfb_; }
  reference::Scaled operand() const { return operand_; }
  const void* b_data() const { return operand_.values.data; }
  // Of the shared tensors; empty unless `shared_name` was given.
  const std::vector<std::string>& tensor_names() const { return tensor_names_; }

 private:
  Weights() = default;

  Client* client_ = nullptr;  // Set if the tensors are to be deleted.
  Arena arena_;
  TensorView b_;
  TensorView sfb_;
  reference::Scaled operand_;
  std::vector<uint64_t> tensor_ids_;
  std::vector<std::string> tensor_names_;
};

// Not thread-safe. The client must outlive it.
class Problem {
 public:
  // `weights` may be null for operations without B (quantize). Errors: those of the memory; INVALID_ARGUMENT.
  static absl::StatusOr<std::unique_ptr<Problem>> Create(Client* client, const ProblemSpec& spec, Transport transport,
                                                         std::shared_ptr<const Weights> weights, uint64_t seed);

  const ProblemSpec& spec() const { return spec_; }
  const v1::RunRequest& request() const { return request_; }

  // Fills D with NaN (or, when accumulating, with what it held at first), so that a result of an earlier run cannot
  // pass. Only where D is shared memory. Errors: those of copying to a device.
  absl::Status ResetResult();

  // Compares the result with the reference. For quantize: OK means elements as the rule says, and all errors 0.
  // Errors: DATA_LOSS (outside the limits, or an inline result of the wrong size), and those of copying from a device.
  absl::StatusOr<reference::Error> Check(const v1::RunResponse& response) const;

 private:
  Problem() = default;
  absl::Status Plan(Client* client, Transport transport);
  void Fill(uint64_t seed);
  void BuildRequest();
  std::vector<reference::Product> Products(const void* d) const;

  ProblemSpec spec_;
  std::shared_ptr<const Weights> weights_;
  Arena arena_;
  size_t a_ = 0, sfa_ = 0, d_ = 0, sfd_ = 0, groups_ = 0;
  std::vector<int64_t> sizes_;        // Rows (or K) of each group.
  std::vector<int64_t> row_group_;    // Contiguous: the group of each row.
  std::vector<float> initial_d_;      // When accumulating.
  reference::Quantized quantized_a_;  // Of a BF16 A on an FP8 B: what is multiplied.
  v1::RunRequest request_;
};

}  // namespace gemmd

#endif  // GEMMD_CLIENT_PROBLEM_H_
