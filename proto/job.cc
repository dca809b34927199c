// SPDX-License-Identifier: Apache-2.0
#include "proto/job.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace gemmd {
namespace {

absl::string_view NameOf(JobField field) {
  switch (field) {
    case JobField::kNone:
      return "request";
    case JobField::kOp:
      return "op";
    case JobField::kScaling:
      return "scaling";
    case JobField::kGroupEncoding:
      return "row_groups";
    case JobField::kQuantizeBlock:
      return "block";
    case JobField::kFlags:
      return "accumulate";
    case JobField::kPriority:
      return "priority";
    case JobField::kGroupAlignment:
      return "row_groups.alignment";
    case JobField::kA:
      return "a";
    case JobField::kSfa:
      return "sfa";
    case JobField::kB:
      return "b";
    case JobField::kSfb:
      return "sfb";
    case JobField::kD:
      return "d";
    case JobField::kSfd:
      return "sf";
    case JobField::kGroups:
      return "groups";
    case JobField::kJob:
      return "request";
    case JobField::kDevice:
      return "device";
  }
  return "request";
}

absl::string_view NameOfOperand(int64_t index) {
  constexpr absl::string_view kNames[] = {"a", "sfa", "b", "sfb", "d", "sf", "groups"};
  return index >= 0 && index < kOperandCount ? kNames[index] : "another operand";
}

absl::string_view NameOfDType(int64_t value) {
  return value >= 0 && value <= 255 ? Name(static_cast<DType>(value)) : "invalid";
}

}  // namespace

uint32_t CodeOf(Rule rule) {
  switch (rule) {
    case Rule::kNone:
      return static_cast<uint32_t>(absl::StatusCode::kOk);
    case Rule::kUnknownRegion:
      return static_cast<uint32_t>(absl::StatusCode::kNotFound);
    case Rule::kRegionClosed:
      return static_cast<uint32_t>(absl::StatusCode::kFailedPrecondition);
    case Rule::kOutsideRegion:
    case Rule::kRegionShrank:
      return static_cast<uint32_t>(absl::StatusCode::kOutOfRange);
    case Rule::kOverlapsInFlight:
      return static_cast<uint32_t>(absl::StatusCode::kAborted);
    case Rule::kQueueFull:
    case Rule::kOutOfMemory:
      return static_cast<uint32_t>(absl::StatusCode::kResourceExhausted);
    case Rule::kDeadline:
      return static_cast<uint32_t>(absl::StatusCode::kDeadlineExceeded);
    case Rule::kCancelled:
      return static_cast<uint32_t>(absl::StatusCode::kCancelled);
    case Rule::kDraining:
    case Rule::kDeviceLost:
    case Rule::kNotStarted:
      return static_cast<uint32_t>(absl::StatusCode::kUnavailable);
    case Rule::kDeviceFailed:
      return static_cast<uint32_t>(absl::StatusCode::kInternal);
    case Rule::kUnsupported:
      return static_cast<uint32_t>(absl::StatusCode::kUnimplemented);
    default:
      return static_cast<uint32_t>(absl::StatusCode::kInvalidArgument);
  }
}

std::string Describe(const Reason& reason) {
  const absl::string_view field = NameOf(reason.field);
  const auto dimension = [&] { return absl::StrCat(field, ".shape[", reason.index, "]"); };
  const auto stride = [&] { return absl::StrCat(field, ".strides[", reason.index, "]"); };
  const auto element = [&] { return absl::StrCat(field, "[", reason.index, "]"); };
  const int64_t expected = reason.expected;
  const int64_t got = reason.got;
  switch (reason.rule) {
    case Rule::kNone:
      return "ok";
    case Rule::kUnknownValue:
      if (expected != 0) return absl::StrCat(field, ": expected at most ", expected, ", got ", got);
      return absl::StrCat(field, ": expected a value known for this operation, got ", got);
    case Rule::kMissing:
      return absl::StrCat(field, ": expected to be given for this operation, got nothing");
    case Rule::kUnexpected:
      return absl::StrCat(field, ": expected to be left out for this operation, got a value");
    case Rule::kDType:
      if (expected == 0) {
        return absl::StrCat(field, ".dtype: ", NameOfDType(got), " is not accepted for this operation and scaling");
      }
      return absl::StrCat(field, ".dtype: expected ", NameOfDType(expected), ", got ", NameOfDType(got));
    case Rule::kRank:
      return absl::StrCat(field, ".shape: expected rank ", expected, ", got rank ", got);
    case Rule::kExtent:
      return absl::StrCat(dimension(), ": expected ", expected, ", got ", got);
    case Rule::kExtentNegative:
      return absl::StrCat(dimension(), ": expected at least 0, got ", got);
    case Rule::kExtentTooLarge:
      return absl::StrCat(dimension(), ": expected at most ", expected, ", got ", got);
    case Rule::kInnerStride:
      return absl::StrCat(stride(), ": expected ", expected, ", got ", got);
    case Rule::kRowPitch:
      return absl::StrCat(stride(), ": expected a pitch that is a multiple of ", expected, " bytes, got ", got,
                          " bytes");
    case Rule::kStrideTooSmall:
      return absl::StrCat(stride(), ": expected at least ", expected, ", got ", got);
    case Rule::kStrideTooLarge:
      return absl::StrCat(stride(), ": expected at most ", expected, ", got ", got);
    case Rule::kAlignment:
      return absl::StrCat(field, ".offset: expected a multiple of ", expected, " bytes, got ", got);
    case Rule::kUnknownRegion:
      return absl::StrCat(field, ": no such region or tensor");
    case Rule::kRegionClosed:
      return absl::StrCat(field, ": the region is closed");
    case Rule::kOutsideRegion:
      if (got < 0)
        return absl::StrCat(field, ": expected to end within ", expected, " bytes of its region, got an overflow");
      return absl::StrCat(field, ": expected to end within ", expected, " bytes of its region, got ", got);
    case Rule::kReadOnly:
      return absl::StrCat(field, ": expected a writable region for an output, got one registered for reading");
    case Rule::kOverlapsInput:
      return absl::StrCat(field, ": expected not to overlap an operand of the same request, got an overlap with ",
                          NameOfOperand(got));
    case Rule::kOverlapsInFlight:
      return absl::StrCat(field, ": overlaps the output of a request that is still in flight");
    case Rule::kGroupValue:
      return absl::StrCat(element(), ": expected at most ", expected, ", got ", got);
    case Rule::kGroupNegative:
      return absl::StrCat(element(), ": expected at least ", expected, ", got ", got);
    case Rule::kGroupOrder:
      return absl::StrCat(element(), ": expected not to be below ", expected, ", got ", got);
    case Rule::kGroupMultiple:
      return absl::StrCat(element(), ": expected a multiple of ", expected, ", got ", got);
    case Rule::kGroupSum:
      return absl::StrCat(field, ": expected to add up to ", expected, ", got ", got);
    case Rule::kCountMismatch:
      return absl::StrCat(field, ": expected ", expected, ", got ", got);
    case Rule::kQueueFull:
      return absl::StrCat("queue: expected at most ", expected, " requests to wait, got ", got);
    case Rule::kOutOfMemory:
      if (got == 0) return absl::StrCat(field, ": out of memory");
      return absl::StrCat(field, ": no memory for ", got, " bytes");
    case Rule::kDeadline:
      return "deadline passed before the request was launched; it was not executed";
    case Rule::kCancelled:
      return "cancelled before the request was launched; it was not executed";
    case Rule::kDraining:
      return "draining: new requests are refused";
    case Rule::kDeviceFailed:
      return absl::StrCat("device: failed with error ", got);
    case Rule::kRegionShrank:
      return absl::StrCat(field, ": shared memory object is smaller than when it was registered");
    case Rule::kUnsupported:
      return absl::StrCat(field, ": not supported on this device");
    case Rule::kDeviceLost:
      return absl::StrCat("device: failed beyond repair under the request, error ", got, "; its worker starts again");
    case Rule::kNotStarted:
      return "the worker ended before it began the request; it was not executed";
  }
  return absl::StrCat(field, ": unknown reason ", static_cast<int>(reason.rule));
}

absl::string_view Name(Op op) {
  switch (op) {
    case Op::kNone:
      return "none";
    case Op::kDense:
      return "dense";
    case Op::kMGroupedContiguous:
      return "m_grouped_contiguous";
    case Op::kMGroupedMasked:
      return "m_grouped_masked";
    case Op::kKGrouped:
      return "k_grouped";
    case Op::kQuantize:
      return "quantize";
    case Op::kCopy:
      return "copy";
    case Op::kCancel:
      return "cancel";
    case Op::kTranspose:
      return "transpose";
  }
  return "invalid";
}

absl::string_view Name(Scaling scaling) {
  switch (scaling) {
    case Scaling::kUnset:
      return "unset";
    case Scaling::k1D2D:
      return "1d2d";
    case Scaling::k1D1D:
      return "1d1d";
    case Scaling::kNone:
      return "none";
  }
  return "invalid";
}

}  // namespace gemmd
