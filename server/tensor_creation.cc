// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_creation.h"

#include "server/tensor_transfer.h"

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace gemmd {
namespace {

absl::Status WithField(absl::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

// Proto enums are open; a number that does not fit must not wrap around to a known value.
DType DTypeOf(v1::DType dtype) { return v1::DType_IsValid(dtype) ? static_cast<DType>(dtype) : DType::kNone; }

absl::StatusOr<TensorWish> WishOf(const v1::CreateTensorRequest& request, bool everybody) {
  if (!v1::DType_IsValid(request.dtype())) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype: expected a known type, got ", static_cast<int>(request.dtype())));
  }
  if (!v1::Quantize::Block_IsValid(request.quantize())) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantize: expected a known block, got ", static_cast<int>(request.quantize())));
  }
  TensorWish wish;
  wish.spec = {static_cast<DType>(request.dtype()),
               {request.shape().begin(), request.shape().end()},
               request.name(),
               request.shared(),
               everybody};
  wish.transpose = request.transpose();
  wish.quantize = static_cast<QuantizeBlock>(request.quantize());
  return wish;
}

// Of slices and inline bytes, which say themselves what they are.
absl::StatusOr<ContentLayout> LayoutOf(const v1::TensorRef& data) {
  ContentLayout layout{DTypeOf(data.dtype()), {data.shape().begin(), data.shape().end()}};
  if (layout.dtype == DType::kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.dtype: expected an element type, got ", static_cast<int>(data.dtype())));
  }
  return layout;
}

}  // namespace

std::shared_ptr<TensorCreation> TensorCreation::Start(const TensorMakers& makers, Call call,
                                                      const v1::CreateTensorRequest& request, Done done) {
  std::shared_ptr<TensorCreation> creation(new TensorCreation(makers, std::move(call), std::move(done)));
  creation->Begin(request);
  return creation;
}

TensorCreation::TensorCreation(const TensorMakers& makers, Call call, Done done)
    : makers_(makers), call_(std::move(call)), done_(std::move(done)), runner_(makers.pool, call_.session) {}

void TensorCreation::Cancel() {
  cancelled_.store(true);
  runner_.Cancel();
}

void TensorCreation::Begin(const v1::CreateTensorRequest& request) {
  absl::StatusOr<TensorWish> wish = WishOf(request, call_.everybody);
  if (!wish.ok()) return Finish(wish.status());
  if (!request.has_file()) return Reserve(*wish, ResolveData(request.data()));
  makers_.file_thread.Post([self = shared_from_this(), wish = *std::move(wish), file = request.file()] {
    self->Reserve(wish, self->ResolveFile(file));
  });
}

absl::StatusOr<ContentLayout> TensorCreation::ResolveFile(const v1::TensorFile& file) {
  from_file_ = true;
  absl::StatusOr<TensorFile> opened = makers_.files.OpenFile(file.path());
  if (!opened.ok()) return opened.status();
  file_ = *std::move(opened);
  const absl::StatusOr<SafetensorsEntry> entry = file_.Find(file.tensor());
  if (!entry.ok()) return entry.status();
  file_offset_ = entry->begin;
  return ContentLayout{entry->dtype, entry->shape};
}

absl::StatusOr<ContentLayout> TensorCreation::ResolveData(const v1::TensorRef& data) {
  if (data.strides_size() != 0) {
    return absl::InvalidArgumentError("data.strides: expected none (contiguous content), got some");
  }
  if (data.has_tensor_id() || data.has_tensor_name()) {
    absl::StatusOr<TensorView> source = data.has_tensor_id()
                                            ? makers_.tensors.Find(*call_.session, data.tensor_id())
                                            : makers_.tensors.FindByName(*call_.session, data.tensor_name());
    if (!source.ok()) return WithField("data", source.status());
    if (data.shape_size() != 0 || data.dtype() != v1::DTYPE_UNSPECIFIED) {
      return absl::InvalidArgumentError("data: expected no dtype and shape beside a tensor, got some");
    }
    source_ = *std::move(source);
    worker_ = source_.worker;
    place_ = {source_.region_id, 0};
    return ContentLayout{source_.dtype, {source_.shape.begin(), source_.shape.begin() + source_.rank}};
  }
  absl::StatusOr<ContentLayout> layout = LayoutOf(data);
  if (!layout.ok()) return layout;
  const absl::StatusOr<int64_t> byte_size = ByteSizeOf(layout->dtype, layout->shape);
  if (!byte_size.ok()) return WithField("data", byte_size.status());
  const auto bytes = static_cast<uint64_t>(*byte_size);
  if (data.has_slice()) {
    const absl::StatusOr<RegionView> region = makers_.regions.Find(*call_.session, data.slice().region_id());
    if (!region.ok()) return WithField("data", region.status());
    absl::Status status = CheckWindow("data.slice", data.slice().offset(), bytes, region->byte_size);
    if (!status.ok()) return status;
    if (region->workers != kAllWorkers) worker_ = std::countr_zero(region->workers);
    place_ = {region->region_id, data.slice().offset()};
    return layout;
  }
  if (data.inline_().size() != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.inline: expected ", bytes, " bytes, got ", data.inline_().size()));
  }
  absl::StatusOr<ArenaLease> lease = makers_.arena.Allocate(bytes);
  if (!lease.ok()) return lease.status();
  inline_ = *std::move(lease);
  if (bytes > 0) std::memcpy(inline_.data(), data.inline_().data(), bytes);
  place_ = {inline_.region_id(), inline_.offset()};
  return layout;
}

void TensorCreation::Reserve(const TensorWish& wish, const absl::StatusOr<ContentLayout>& content) {
  if (!content.ok()) return Finish(content.status());
  absl::StatusOr<TensorPlan> plan = PlanTensor(wish, *content);
  if (!plan.ok()) return Finish(plan.status());
  plan_ = *std::move(plan);
  makers_.tensors.Reserve(call_.session, plan_.tensor, worker_,
                          [self = shared_from_this()](absl::StatusOr<TensorView> view) {
                            if (!view.ok()) return self->Finish(view.status());
                            self->tensor_ = *std::move(view);
                            self->ReserveScales();
                          });
}

void TensorCreation::ReserveScales() {
  if (!plan_.scales.has_value()) return Bring(FirstChunk(plan_));
  makers_.tensors.Reserve(call_.session, *plan_.scales, tensor_.worker,
                          [self = shared_from_this()](absl::StatusOr<TensorView> view) {
                            if (!view.ok()) return self->Finish(WithField("scale factors", view.status()));
                            self->scales_ = *std::move(view);
                            self->Bring(FirstChunk(self->plan_));
                          });
}

void TensorCreation::Bring(const ContentChunk& chunk) {
  if (cancelled_.load()) return Finish(absl::CancelledError("the call was cancelled"));
  if (!from_file_) return RunJobs(chunk);
  makers_.file_thread.Post([self = shared_from_this(), chunk] { self->ReadChunk(chunk); });
}

void TensorCreation::ReadChunk(const ContentChunk& chunk) {
  if (chunk_.byte_size() < chunk.byte_size) {
    absl::StatusOr<ArenaLease> lease = makers_.arena.Allocate(chunk.byte_size);
    if (!lease.ok()) return Finish(lease.status());
    chunk_ = *std::move(lease);
  }
  const absl::Status status = file_.Read(file_offset_ + chunk.offset, {chunk_.data(), chunk.byte_size});
  if (!status.ok()) return Finish(status);
  RunJobs(chunk);
}

void TensorCreation::RunJobs(const ContentChunk& chunk) {
  const uint64_t scratch_bytes = ScratchBytes(plan_, chunk);
  if (scratch_.byte_size() < scratch_bytes) {
    absl::StatusOr<ArenaLease> lease = makers_.arena.Allocate(scratch_bytes);
    if (!lease.ok()) return Finish(lease.status());
    scratch_ = *std::move(lease);
  }
  ChunkPlaces places;
  places.content = from_file_ ? RegionOffset{chunk_.region_id(), chunk_.offset()}
                              : RegionOffset{place_.region, place_.offset + chunk.offset};
  places.scratch = {scratch_.region_id(), scratch_.offset()};
  places.tensor = tensor_.region_id;
  places.scales = scales_.region_id;
  jobs_ = JobsOf(plan_, chunk, places);
  std::reverse(jobs_.begin(), jobs_.end());
  RunNextJob(chunk);
}

void TensorCreation::RunNextJob(const ContentChunk& chunk) {
  if (jobs_.empty()) {
    const std::optional<ContentChunk> next = NextChunk(plan_, chunk);
    return next.has_value() ? Bring(*next) : Finish(absl::OkStatus());
  }
  JobDescriptor job = jobs_.back();
  jobs_.pop_back();
  job.session = call_.session->id();
  job.deadline_ns = call_.deadline_ns;
  runner_.Start(job, tensor_.worker, [self = shared_from_this(), chunk](const absl::Status& status) {
    if (!status.ok()) return self->Finish(WithField("content", status));
    self->RunNextJob(chunk);
  });
}

void TensorCreation::Finish(const absl::Status& status) {
  absl::StatusOr<TensorRecord> record = absl::UnknownError("");
  if (status.ok()) {
    for (const TensorView* view : {&tensor_, &scales_}) {
      if (view->pin != nullptr) TensorRegistry::AddBytesWritten(*view, view->byte_size);
    }
    record = makers_.tensors.Publish(tensor_.region_id, scales_.region_id);
  } else {
    record = status;
    for (const TensorView* view : {&tensor_, &scales_}) {
      if (view->pin != nullptr) makers_.tensors.Discard(view->region_id);
    }
  }
  // What the call held is free when its answer is there.
  tensor_ = scales_ = source_ = TensorView();
  for (ArenaLease* lease : {&inline_, &chunk_, &scratch_}) *lease = ArenaLease();
  done_(std::move(record));
}

}  // namespace gemmd
