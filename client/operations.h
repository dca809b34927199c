// SPDX-License-Identifier: Apache-2.0
// One struct for each operation, filled with designated initialisers, and its translation to a request. The meaning,
// shape and type of every field is that of the message of the same name in proto/gemmd/v1/gemm.proto.
#ifndef GEMMD_CLIENT_OPERATIONS_H_
#define GEMMD_CLIENT_OPERATIONS_H_

#include "client/tensor_view.h"
#include "gemmd/v1/gemm.pb.h"
#include "proto/job.h"

#include <cstdint>

namespace gemmd {

// D[M,N] = A[M,K] * B[N,K]^T (+ D).
struct DenseCall {
  Scaling scaling = Scaling::k1D2D;
  TensorView a = {};
  TensorView sfa = {};
  TensorView b = {};
  TensorView sfb = {};
  TensorView d = {};
  bool accumulate = false;
};

// D[rows of g] = A[rows of g] * B[g]^T.
struct MGroupedContiguousCall {
  Scaling scaling = Scaling::k1D2D;
  TensorView a = {};
  TensorView sfa = {};
  TensorView b = {};
  TensorView sfb = {};
  TensorView d = {};
  GroupEncoding encoding = GroupEncoding::kOffsets;  // Or kRowIndex, kAlignedEnds.
  TensorView groups = {};
  int64_t alignment = 0;  // kAlignedEnds only.
};

// D[g, :masked_m[g]] = A[g, :masked_m[g]] * B[g]^T.
struct MGroupedMaskedCall {
  Scaling scaling = Scaling::k1D2D;
  TensorView a = {};
  TensorView sfa = {};
  TensorView b = {};
  TensorView sfb = {};
  TensorView d = {};
  TensorView masked_m = {};
};

// D[g] = A_g * B_g^T (+ D[g]).
struct KGroupedCall {
  Scaling scaling = Scaling::k1D1D;
  TensorView a = {};
  TensorView sfa = {};
  TensorView b = {};
  TensorView sfb = {};
  TensorView d = {};
  TensorView ks = {};
  bool accumulate = false;
};

// Q and SF from X.
struct QuantizeCall {
  QuantizeBlock block = QuantizeBlock::k1x128;
  TensorView x = {};
  TensorView q = {};
  TensorView sf = {};
};

v1::RunRequest ToRequest(const DenseCall& call);
v1::RunRequest ToRequest(const MGroupedContiguousCall& call);
v1::RunRequest ToRequest(const MGroupedMaskedCall& call);
v1::RunRequest ToRequest(const KGroupedCall& call);
v1::RunRequest ToRequest(const QuantizeCall& call);

}  // namespace gemmd

#endif  // GEMMD_CLIENT_OPERATIONS_H_
