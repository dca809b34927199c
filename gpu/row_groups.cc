// SPDX-License-Identifier: Apache-2.0
#include "gpu/row_groups.h"

#include <vector>

namespace gemmd {
namespace {

Reason Broken(Rule rule, size_t index, int64_t expected, int64_t got) {
  return {
      .field = JobField::kGroups, .rule = rule, .index = static_cast<int32_t>(index), .expected = expected, .got = got};
}

Reason AppendOffsets(const RowGroupSpec& spec, absl::Span<const int64_t> offsets, std::vector<RowSegment>& segments) {
  if (offsets[0] < 0) return Broken(Rule::kGroupNegative, 0, 0, offsets[0]);
  if (offsets[0] > 0) return Broken(Rule::kGroupValue, 0, 0, offsets[0]);
  for (size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1]) return Broken(Rule::kGroupOrder, i, offsets[i - 1], offsets[i]);
    if (offsets[i] > spec.rows) return Broken(Rule::kGroupValue, i, spec.rows, offsets[i]);
    if (offsets[i] > offsets[i - 1]) segments.push_back({static_cast<int64_t>(i) - 1, offsets[i - 1], offsets[i]});
  }
  if (offsets.back() != spec.rows) return Broken(Rule::kGroupSum, offsets.size() - 1, spec.rows, offsets.back());
  return {};
}

// A run of rows of one group is a segment; padding rows (-1) end a run.
Reason AppendRowIndex(const RowGroupSpec& spec, absl::Span<const int64_t> index, std::vector<RowSegment>& segments) {
  int64_t last_group = 0;
  bool in_run = false;
  for (size_t i = 0; i < index.size(); ++i) {
    const int64_t group = index[i];
    if (group < -1) return Broken(Rule::kGroupNegative, i, -1, group);
    if (group >= spec.groups) return Broken(Rule::kGroupValue, i, spec.groups - 1, group);
    if (group == -1) {
      in_run = false;
      continue;
    }
    if (group < last_group) return Broken(Rule::kGroupOrder, i, last_group, group);
    const auto row = static_cast<int64_t>(i);
    if (!in_run || group != last_group) segments.push_back({group, row, row});
    segments.back().end = row + 1;
    last_group = group;
    in_run = true;
  }
  return {};
}

Reason AppendAlignedEnds(const RowGroupSpec& spec, absl::Span<const int64_t> ends, std::vector<RowSegment>& segments) {
  int64_t begin = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    if (ends[i] < 0) return Broken(Rule::kGroupNegative, i, 0, ends[i]);
    if (ends[i] < begin) return Broken(Rule::kGroupOrder, i, begin, ends[i]);
    if (ends[i] > spec.rows) return Broken(Rule::kGroupValue, i, spec.rows, ends[i]);
    if (ends[i] > begin) segments.push_back({static_cast<int64_t>(i), begin, ends[i]});
    begin = (ends[i] + spec.alignment - 1) / spec.alignment * spec.alignment;
  }
  return {};
}

Reason AppendMasked(const RowGroupSpec& spec, absl::Span<const int64_t> masked, std::vector<RowSegment>& segments) {
  for (size_t i = 0; i < masked.size(); ++i) {
    if (masked[i] < 0) return Broken(Rule::kGroupNegative, i, 0, masked[i]);
    if (masked[i] > spec.rows) return Broken(Rule::kGroupValue, i, spec.rows, masked[i]);
    if (masked[i] > 0) segments.push_back({static_cast<int64_t>(i), 0, masked[i]});
  }
  return {};
}

}  // namespace

Reason AppendSegments(const RowGroupSpec& spec, absl::Span<const int64_t> values, std::vector<RowSegment>& segments) {
  switch (spec.encoding) {
    case GroupEncoding::kOffsets:
      return AppendOffsets(spec, values, segments);
    case GroupEncoding::kRowIndex:
      return AppendRowIndex(spec, values, segments);
    case GroupEncoding::kAlignedEnds:
      return AppendAlignedEnds(spec, values, segments);
    case GroupEncoding::kMasked:
      return AppendMasked(spec, values, segments);
    case GroupEncoding::kNone:
    case GroupEncoding::kKSizes:
      break;
  }
  return {};
}

Reason CheckKSizes(absl::Span<const int64_t> ks, int64_t multiple, int64_t limit) {
  int64_t sum = 0;
  for (size_t i = 0; i < ks.size(); ++i) {
    if (ks[i] < 0) return Broken(Rule::kGroupNegative, i, 0, ks[i]);
    if (ks[i] > limit - sum) return Broken(Rule::kGroupValue, i, limit - sum, ks[i]);
    if (ks[i] % multiple != 0) return Broken(Rule::kGroupMultiple, i, multiple, ks[i]);
    sum += ks[i];
  }
  return {};
}

}  // namespace gemmd
