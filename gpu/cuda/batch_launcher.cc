// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/batch_launcher.h"

#include "gpu/cuda/cuda_memory.h"
#include "gpu/cuda_status.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace gemmd {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

MatrixView MatrixOf(const GpuWindow& w) {
  if (w.rank == 3) return {w.data, w.shape[0], w.shape[1], w.shape[2], w.strides[0], w.strides[1]};
  return {w.data, 1, w.shape[0], w.shape[1], 0, w.strides[0]};
}

ScaleView ScalesOf(const GpuWindow& w) {
  const float* data = reinterpret_cast<const float*>(w.data);
  if (w.rank == 3) return {data, w.strides[0], w.strides[1], w.strides[2]};
  return {data, 0, w.strides[0], w.strides[1]};
}

// The kernels count the rows of one tile's scales in 32 bits.
absl::Status CheckScales(const ScaleView& scales) {
  constexpr int64_t kRowsOfTile = 256;
  if (scales.row_stride <= std::numeric_limits<int>::max() / kRowsOfTile) return absl::OkStatus();
  return absl::UnimplementedError("scale factors: the row stride is too large for this device");
}

KernelScaling ScalingOf(const Gemm& gemm) {
  if (gemm.scaling == Scaling::kNone) return KernelScaling::kBf16;
  return gemm.scaling == Scaling::k1D1D ? KernelScaling::kRowRow : KernelScaling::kRowBlock;
}

KernelOutput OutputOf(const Gemm& gemm) {
  if (gemm.operand(OperandIndex::kD).dtype == DType::kBf16) return KernelOutput::kBf16;
  return gemm.accumulate ? KernelOutput::kF32Add : KernelOutput::kF32;
}

absl::Status ReturnRows(Staging& staging, const GpuWindow& d, const Operand& operand, const SegmentList& segments) {
  for (const Segment& rows : segments) {
    if (absl::Status status = staging.Return(d, operand, rows.batch, rows.row_begin, rows.row_end); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

bool SameWindow(const Operand& a, const Operand& b) {
  return a.region == b.region && a.offset == b.offset && a.shape == b.shape && a.strides == b.strides &&
         a.dtype == b.dtype;
}

// Jobs whose rows can be multiplied together: same weights, known rows, nothing to add to.
bool CanShareLaunch(const Batch& batch) {
  const Gemm& first = batch.jobs[0].gemm;
  return std::all_of(batch.jobs.begin(), batch.jobs.end(), [&](const Job& job) {
    const Gemm& gemm = job.gemm;
    const bool has_rows = gemm.op == Op::kDense || gemm.op == Op::kMGroupedContiguous || gemm.op == Op::kMGroupedMasked;
    return has_rows && !gemm.masked_on_device && gemm.op == first.op && gemm.scaling == first.scaling &&
           !gemm.accumulate && gemm.n == first.n && gemm.k == first.k &&
           gemm.operand(OperandIndex::kA).dtype == first.operand(OperandIndex::kA).dtype &&
           gemm.operand(OperandIndex::kD).dtype == first.operand(OperandIndex::kD).dtype &&
           SameWindow(gemm.operand(OperandIndex::kB), first.operand(OperandIndex::kB)) &&
           SameWindow(gemm.operand(OperandIndex::kSfb), first.operand(OperandIndex::kSfb));
  });
}

const CudaMemory& MemoryOf(const Operand& operand) { return static_cast<const CudaMemory&>(*operand.memory); }

char* AddressOf(const Operand& operand) { return MemoryOf(operand).address() + operand.offset; }

// Elements of `from` [R,C] to `to` [C,R]. The kernel moves 4 bytes or 1, so elements of 2 go byte by byte: weights are
// transposed once, and a kernel of its own is not worth its compilation at every start.
RowMoves TransposeMoves(const GpuWindow& from, const GpuWindow& to) {
  RowMoves moves;
  if (from.element_bytes == 4) {
    moves.AddElements(to.data, 1, to.strides[0], from.data, from.strides[0], 1, from.shape[0], from.shape[1]);
    return moves;
  }
  for (int64_t byte = 0; byte < from.element_bytes; ++byte) {
    moves.AddBytes(to.data + byte, from.element_bytes, to.strides[0] * from.element_bytes, from.data + byte,
                   from.strides[0] * from.element_bytes, from.element_bytes, from.shape[0], from.shape[1]);
  }
  return moves;
}

// The first of some rows, in elements from the first of all.
int64_t OffsetOf(const Segment& rows, int rank, const std::array<int64_t, kMaxRank>& strides) {
  return rows.row_begin * strides[static_cast<size_t>(rank - 2)] + (rank == 3 ? rows.batch * strides[0] : 0);
}

// A job whose memory is gone must fail alone.
bool AllStillThere(const Batch& batch) {
  for (const Job& job : batch.jobs) {
    for (const Operand& operand : job.gemm.operands) {
      if (operand.present() && !MemoryOf(operand).CheckStillThere().ok()) return false;
    }
  }
  return true;
}

}  // namespace

std::vector<absl::Status> BatchLauncher::Launch(const Batch& batch, const WorkStream& work, CountedRows& counted) {
  if (batch.jobs.size() > 1 && CanShareLaunch(batch) && AllStillThere(batch)) {
    const PackedRows packed(batch);
    if (PackingSaves(batch, packed))
      return std::vector<absl::Status>(batch.jobs.size(), LaunchTogether(batch, packed, work));
  }
  std::vector<absl::Status> statuses;
  for (const Job& job : batch.jobs) statuses.push_back(LaunchJob(job.gemm, work, counted));
  return statuses;
}

absl::Status BatchLauncher::LaunchJob(const Gemm& gemm, const WorkStream& work, CountedRows& counted) {
  switch (gemm.op) {
    case Op::kCopy:
      return Copy(gemm, work);
    case Op::kQuantize:
      return Quantize(gemm, work);
    case Op::kTranspose:
      return Transpose(gemm, work);
    case Op::kKGrouped:
      return MultiplyDepth(gemm, work);
    case Op::kDense:
    case Op::kMGroupedContiguous:
    case Op::kMGroupedMasked:
      return Multiply(gemm, work, counted);
    case Op::kNone:
    case Op::kCancel:
      break;
  }
  return absl::InternalError("not an operation for a device");
}

absl::Status BatchLauncher::Copy(const Gemm& gemm, const WorkStream& work) {
  if (gemm.k == 0) return absl::OkStatus();
  for (const OperandIndex index : {OperandIndex::kA, OperandIndex::kD}) {
    if (absl::Status status = MemoryOf(gemm.operand(index)).CheckStillThere(); !status.ok()) return status;
  }
  return CudaStatus(
      cudaMemcpyAsync(AddressOf(gemm.operand(OperandIndex::kD)), AddressOf(gemm.operand(OperandIndex::kA)),
                      static_cast<size_t>(gemm.k), cudaMemcpyDefault, work.stream),
      "copying");
}

absl::Status BatchLauncher::Quantize(const Gemm& gemm, const WorkStream& work) {
  Staging staging(work);
  absl::StatusOr<GpuWindow> x = staging.Input(gemm.operand(OperandIndex::kA));
  if (!x.ok()) return x.status();
  absl::StatusOr<GpuWindow> q = staging.Output(gemm.operand(OperandIndex::kD));
  if (!q.ok()) return q.status();
  absl::StatusOr<GpuWindow> sf = staging.Output(gemm.operand(OperandIndex::kSfd));
  if (!sf.ok()) return sf.status();
  const QuantizeArgs args = {x->data,
                             x->strides[0],
                             reinterpret_cast<unsigned char*>(q->data),
                             q->strides[0],
                             reinterpret_cast<float*>(sf->data),
                             sf->strides[0],
                             sf->strides[1],
                             gemm.m,
                             gemm.k};
  const bool blocks = gemm.quantize_block == QuantizeBlock::k128x128;
  absl::Status status = launcher_.LaunchQuantize(
      args, gemm.operand(OperandIndex::kA).dtype == DType::kBf16 ? QuantizeInput::kBf16 : QuantizeInput::kF32,
      blocks ? QuantizeShape::kBlock : QuantizeShape::kRow, work.stream);
  if (status.ok()) status = staging.Return(*q, gemm.operand(OperandIndex::kD), 0, 0, gemm.m);
  if (status.ok()) {
    status = staging.Return(*sf, gemm.operand(OperandIndex::kSfd), 0, 0, blocks ? CeilDiv(gemm.m, 128) : gemm.m);
  }
  return status;
}

absl::Status BatchLauncher::Transpose(const Gemm& gemm, const WorkStream& work) {
  if (gemm.m == 0 || gemm.k == 0) return absl::OkStatus();
  Staging staging(work);
  const absl::StatusOr<GpuWindow> from = staging.Input(gemm.operand(OperandIndex::kA));
  if (!from.ok()) return from.status();
  const absl::StatusOr<GpuWindow> to = staging.Output(gemm.operand(OperandIndex::kD));
  if (!to.ok()) return to.status();
  const RowMoves moves = TransposeMoves(*from, *to);
  if (absl::Status status = launcher_.LaunchMoveRows(moves.InPieces(), moves.unit(), work.stream); !status.ok())
    return status;
  return staging.Return(*to, gemm.operand(OperandIndex::kD), 0, 0, gemm.k);
}

absl::Status BatchLauncher::QuantizeRows(Staging& staging, cudaStream_t stream, const SegmentList& segments,
                                         GpuWindow* a, ScaleView* sfa) {
  const int64_t matrices = a->rank == 3 ? a->shape[0] : 1;
  const int64_t rows = a->shape[static_cast<size_t>(a->rank - 2)];
  const int64_t k = a->shape[static_cast<size_t>(a->rank - 1)];
  const int64_t blocks = CeilDiv(k, 128);
  const int64_t pitch = CeilDiv(k, 16) * 16;
  const int64_t scale_pitch = CeilDiv(rows, 4) * 4;
  absl::StatusOr<char*> q = staging.Allocate(matrices * rows * pitch);
  if (!q.ok()) return q.status();
  absl::StatusOr<char*> sf = staging.Allocate(matrices * scale_pitch * blocks * 4);
  if (!sf.ok()) return sf.status();
  const int64_t row_stride = a->strides[static_cast<size_t>(a->rank - 2)];
  // One launch for a matrix, whatever lies between its segments; of several only what is multiplied.
  const SegmentList all = {{0, 0, 0, static_cast<int>(rows), static_cast<int>(k), 0}};
  for (const Segment& part : a->rank == 3 ? segments : all) {
    const QuantizeArgs args = {a->data + OffsetOf(part, a->rank, a->strides) * 2,
                               row_stride,
                               reinterpret_cast<unsigned char*>(*q + (part.batch * rows + part.row_begin) * pitch),
                               pitch,
                               reinterpret_cast<float*>(*sf) + part.batch * scale_pitch * blocks + part.row_begin,
                               1,
                               scale_pitch,
                               part.row_end - part.row_begin,
                               k};
    if (absl::Status status = launcher_.LaunchQuantize(args, QuantizeInput::kBf16, QuantizeShape::kRow, stream);
        !status.ok()) {
      return status;
    }
  }
  a->data = *q;
  a->element_bytes = 1;
  a->strides[static_cast<size_t>(a->rank - 2)] = pitch;
  if (a->rank == 3) a->strides[0] = rows * pitch;
  *sfa = {reinterpret_cast<const float*>(*sf), scale_pitch * blocks, 1, scale_pitch};
  return absl::OkStatus();
}

absl::Status BatchLauncher::Multiply(const Gemm& gemm, const WorkStream& work, CountedRows& counted) {
  Staging staging(work);
  GemmCall call;
  call.scaling = ScalingOf(gemm);
  call.output = OutputOf(gemm);
  call.segments = SegmentsOf(gemm);
  call.clip_rows = gemm.op != Op::kDense;
  if (call.segments.empty() || gemm.n == 0) return absl::OkStatus();
  if (gemm.masked_on_device) {
    if (absl::Status status = CountRows(gemm, staging, work.stream, counted, &call); !status.ok()) return status;
  }
  absl::StatusOr<GpuWindow> a = InputOf(staging, gemm, OperandIndex::kA);
  if (!a.ok()) return a.status();
  absl::StatusOr<GpuWindow> b = staging.Input(gemm.operand(OperandIndex::kB));
  if (!b.ok()) return b.status();
  if (call.scaling != KernelScaling::kBf16) {
    absl::Status status;
    if (gemm.operand(OperandIndex::kA).dtype == DType::kBf16) {
      status = QuantizeRows(staging, work.stream, call.segments, &*a, &call.sfa);
    } else {
      absl::StatusOr<GpuWindow> sfa = InputOf(staging, gemm, OperandIndex::kSfa);
      status = sfa.status();
      if (sfa.ok()) call.sfa = ScalesOf(*sfa);
    }
    absl::StatusOr<GpuWindow> sfb = staging.Input(gemm.operand(OperandIndex::kSfb));
    status.Update(sfb.status());
    if (sfb.ok()) call.sfb = ScalesOf(*sfb);
    status.Update(CheckScales(call.sfa));
    status.Update(CheckScales(call.sfb));
    if (!status.ok()) return status;
  }
  const Operand& output = gemm.operand(OperandIndex::kD);
  // Where rows are clipped on the GPU, all rows come back.
  absl::StatusOr<GpuWindow> d = staging.Result(output, gemm.accumulate || gemm.masked_on_device);
  if (!d.ok()) return d.status();
  call.a = MatrixOf(*a);
  call.b = MatrixOf(*b);
  call.d = MatrixOf(*d);
  if (absl::Status status = launcher_.Launch(call, work.stream); !status.ok()) return status;
  return ReturnRows(staging, *d, output, call.segments);
}

absl::Status BatchLauncher::CountRows(const Gemm& gemm, Staging& staging, cudaStream_t stream, CountedRows& counted,
                                      GemmCall* call) {
  absl::StatusOr<char*> rows = staging.Allocate(gemm.groups * static_cast<int64_t>(sizeof(int)));
  if (!rows.ok()) return rows.status();
  absl::StatusOr<int*> host_rows = counted.Add(&gemm, gemm.groups);
  if (!host_rows.ok()) return host_rows.status();
  int* group_rows = reinterpret_cast<int*>(*rows);
  call->group_rows = group_rows;
  return launcher_.LaunchClampRows({AddressOf(gemm.operand(OperandIndex::kGroups)), group_rows,
                                    static_cast<int>(gemm.groups), static_cast<int>(gemm.m), *host_rows},
                                   stream);
}

absl::Status BatchLauncher::MultiplyDepth(const Gemm& gemm, const WorkStream& work) {
  Staging staging(work);
  GemmCall call;
  call.scaling = ScalingOf(gemm);
  call.output = OutputOf(gemm);
  const Operand& output = gemm.operand(OperandIndex::kD);
  if (gemm.m == 0 || gemm.n == 0 || gemm.groups == 0) return absl::OkStatus();
  absl::StatusOr<GpuWindow> a = staging.Input(gemm.operand(OperandIndex::kA));
  if (!a.ok()) return a.status();
  absl::StatusOr<GpuWindow> b = staging.Input(gemm.operand(OperandIndex::kB));
  if (!b.ok()) return b.status();
  if (call.scaling != KernelScaling::kBf16) {
    absl::StatusOr<GpuWindow> sfa = staging.Input(gemm.operand(OperandIndex::kSfa));
    if (!sfa.ok()) return sfa.status();
    absl::StatusOr<GpuWindow> sfb = staging.Input(gemm.operand(OperandIndex::kSfb));
    if (!sfb.ok()) return sfb.status();
    call.sfa = ScalesOf(*sfa);
    call.sfb = ScalesOf(*sfb);
    absl::Status status = CheckScales(call.sfa);
    status.Update(CheckScales(call.sfb));
    if (!status.ok()) return status;
  }
  absl::StatusOr<GpuWindow> d = staging.Result(output, gemm.accumulate);
  if (!d.ok()) return d.status();
  call.d = MatrixOf(*d);
  const int64_t element = a->element_bytes;
  int64_t k_before = 0;
  int64_t block = 0;
  for (size_t g = 0; g < gemm.ks.size(); ++g) {
    const int64_t k = gemm.ks[g];
    call.segment_a.push_back({a->data + gemm.m * k_before * element, 1, gemm.m, k, 0, k});
    call.segment_b.push_back({b->data + gemm.n * k_before * element, 1, gemm.n, k, 0, k});
    call.segments.push_back(
        {static_cast<int>(g), 0, 0, static_cast<int>(gemm.m), static_cast<int>(k), static_cast<int>(block)});
    k_before += k;
    block += CeilDiv(k, 128);
  }
  if (absl::Status status = launcher_.Launch(call, work.stream); !status.ok()) return status;
  return ReturnRows(staging, *d, output, call.segments);
}

absl::StatusOr<GpuWindow> BatchLauncher::InputOf(Staging& staging, const Gemm& gemm, OperandIndex index) {
  const Operand& operand = gemm.operand(index);
  const bool by_rows = gemm.op == Op::kMGroupedMasked && !gemm.masked_on_device;
  return by_rows ? staging.InputRows(operand, gemm.segments) : staging.Input(operand);
}

absl::StatusOr<GpuWindow> BatchLauncher::Gather(Staging& staging, cudaStream_t stream, const Batch& batch,
                                                const PackedRows& packed, OperandIndex index) {
  const Operand& first = batch.jobs[0].gemm.operand(index);
  const bool scales = index == OperandIndex::kSfa;
  const int64_t columns = first.shape[static_cast<size_t>(first.rank - 1)];
  const int64_t element = ByteSize(first.dtype);
  GpuWindow all{nullptr, 2, element, {packed.rows(), columns}, {}};
  // Scale factors M-major, which the kernels read fastest.
  const int64_t pitch = CeilDiv((scales ? packed.rows() : columns) * element, 16) * 16 / element;
  if (scales) {
    all.strides = {1, pitch};
  } else {
    all.strides = {pitch, 1};
  }
  absl::StatusOr<char*> data = staging.Allocate((scales ? columns : packed.rows()) * pitch * element);
  if (!data.ok()) return data.status();
  all.data = *data;
  std::vector<GpuWindow> windows;
  for (const Job& job : batch.jobs) {
    absl::StatusOr<GpuWindow> window = InputOf(staging, job.gemm, index);
    if (!window.ok()) return window.status();
    windows.push_back(*window);
  }
  RowMoves moves;
  for (const PackedRun& run : packed.runs()) {
    const GpuWindow& window = windows[run.job];
    const auto row = static_cast<size_t>(window.rank - 2);
    const char* from = window.data + OffsetOf(run.rows, window.rank, window.strides) * element;
    char* to = all.data + run.packed * all.strides[0] * element;
    const int64_t rows = run.rows.row_end - run.rows.row_begin;
    if (scales) {
      moves.AddElements(to, 1, pitch, from, window.strides[row], window.strides[row + 1], rows, columns);
    } else {
      moves.AddRows(to, pitch * element, from, window.strides[row] * element, columns * element, rows);
    }
  }
  if (absl::Status status = launcher_.LaunchMoveRows(moves.InPieces(), moves.unit(), stream); !status.ok())
    return status;
  return all;
}

absl::Status BatchLauncher::Scatter(const GpuWindow& all, cudaStream_t stream, const Batch& batch,
                                    const PackedRows& packed) {
  RowMoves moves;
  for (const PackedRun& run : packed.runs()) {
    const Operand& d = batch.jobs[run.job].gemm.operand(OperandIndex::kD);
    char* to = AddressOf(d) + OffsetOf(run.rows, d.rank, d.strides) * all.element_bytes;
    const int64_t to_pitch = d.strides[static_cast<size_t>(d.rank - 2)] * all.element_bytes;
    const int64_t from_pitch = all.strides[0] * all.element_bytes;
    const char* from = all.data + run.packed * from_pitch;
    const int64_t width = all.shape[1] * all.element_bytes;
    const int64_t rows = run.rows.row_end - run.rows.row_begin;
    if (MemoryOf(d).on_device()) {
      moves.AddRows(to, to_pitch, from, from_pitch, width, rows);
      continue;
    }
    if (absl::Status status = CopyRows(to, to_pitch, from, from_pitch, width, rows, stream); !status.ok())
      return status;
  }
  return launcher_.LaunchMoveRows(moves.InPieces(), moves.unit(), stream);
}

absl::Status BatchLauncher::LaunchTogether(const Batch& batch, const PackedRows& packed, const WorkStream& work) {
  const Gemm& first = batch.jobs[0].gemm;
  if (packed.rows() == 0 || first.n == 0) return absl::OkStatus();
  Staging staging(work);
  GemmCall call;
  call.scaling = ScalingOf(first);
  call.output = OutputOf(first);
  call.segments = packed.segments();
  call.clip_rows = first.op != Op::kDense;
  absl::StatusOr<GpuWindow> a = Gather(staging, work.stream, batch, packed, OperandIndex::kA);
  if (!a.ok()) return a.status();
  absl::StatusOr<GpuWindow> b = staging.Input(first.operand(OperandIndex::kB));
  if (!b.ok()) return b.status();
  if (call.scaling != KernelScaling::kBf16) {
    absl::Status status;
    if (first.operand(OperandIndex::kSfa).present()) {
      const absl::StatusOr<GpuWindow> sfa = Gather(staging, work.stream, batch, packed, OperandIndex::kSfa);
      status = sfa.status();
      if (sfa.ok()) call.sfa = ScalesOf(*sfa);
    } else {
      status = QuantizeRows(staging, work.stream, call.segments, &*a, &call.sfa);
    }
    const absl::StatusOr<GpuWindow> sfb = staging.Input(first.operand(OperandIndex::kSfb));
    status.Update(sfb.status());
    if (sfb.ok()) call.sfb = ScalesOf(*sfb);
    status.Update(CheckScales(call.sfb));
    if (!status.ok()) return status;
  }
  const int64_t d_element = ByteSize(first.operand(OperandIndex::kD).dtype);
  const int64_t d_pitch = CeilDiv(first.n * d_element, 16) * 16 / d_element;
  absl::StatusOr<char*> d_data = staging.Allocate(packed.rows() * d_pitch * d_element);
  if (!d_data.ok()) return d_data.status();
  const GpuWindow d{*d_data, 2, d_element, {packed.rows(), first.n}, {d_pitch, 1}};
  call.a = MatrixOf(*a);
  call.b = MatrixOf(*b);
  call.d = MatrixOf(d);
  if (absl::Status status = launcher_.Launch(call, work.stream); !status.ok()) return status;
  return Scatter(d, work.stream, batch, packed);
}

}  // namespace gemmd
