// SPDX-License-Identifier: Apache-2.0
#include "client/gpu_order.h"

#include "gemmd/v1/types.pb.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

// Of every gemmd.v1.Slice in the message, however deep.
void AddRegions(const google::protobuf::Message& message, std::vector<uint64_t>* ids) {
  if (message.GetDescriptor() == v1::Slice::descriptor()) {
    ids->push_back(static_cast<const v1::Slice&>(message).region_id());
    return;
  }
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const google::protobuf::FieldDescriptor* const field : fields) {
    if (field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated()) continue;
    AddRegions(reflection.GetMessage(message, field), ids);
  }
}

}  // namespace

void GpuOrder::Add(uint64_t region_id, std::shared_ptr<const Gpu> gpu) {
  const absl::MutexLock lock(&mutex_);
  gpus_[region_id] = std::move(gpu);
  regions_.store(static_cast<int64_t>(gpus_.size()), std::memory_order_relaxed);
}

void GpuOrder::Remove(uint64_t region_id) {
  const absl::MutexLock lock(&mutex_);
  gpus_.erase(region_id);
  regions_.store(static_cast<int64_t>(gpus_.size()), std::memory_order_relaxed);
}

absl::Status GpuOrder::Await(const google::protobuf::Message& request) const {
  if (regions_.load(std::memory_order_relaxed) == 0) return absl::OkStatus();
  std::vector<uint64_t> ids;
  AddRegions(request, &ids);
  std::vector<std::shared_ptr<const Gpu>> gpus;
  {
    const absl::MutexLock lock(&mutex_);
    for (const uint64_t id : ids) {
      const auto found = gpus_.find(id);
      if (found == gpus_.end()) continue;
      const auto same = [&](const std::shared_ptr<const Gpu>& gpu) { return gpu->uuid() == found->second->uuid(); };
      if (std::none_of(gpus.begin(), gpus.end(), same)) gpus.push_back(found->second);
    }
  }
  for (const std::shared_ptr<const Gpu>& gpu : gpus) {
    if (absl::Status status = gpu->Synchronize(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace gemmd
