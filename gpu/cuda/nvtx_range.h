// SPDX-License-Identifier: Apache-2.0
// Names batches in the timeline of a profiler (Nsight Systems). NVTX comes as headers with the CUDA toolkit and asks at
// run time whether a profiler listens; without one, or built without the headers, all of this is one comparison.
#ifndef GEMMD_GPU_CUDA_NVTX_RANGE_H_
#define GEMMD_GPU_CUDA_NVTX_RANGE_H_

#include "gpu/job.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define GEMMD_WITH_NVTX 1
#endif

#include <string>

namespace gemmd {

// "dense n=2112 k=7168, 3 jobs, 192 rows": the class of shapes that share kernels, then what this batch has of it.
std::string RangeName(const Batch& batch);

// The domain "gemmd" of one device. Made and used on one thread.
class NvtxDomain {
 public:
#ifdef GEMMD_WITH_NVTX
  NvtxDomain() : domain_(nvtxDomainCreateA("gemmd")) {}
  ~NvtxDomain() {
    if (domain_ != nullptr) nvtxDomainDestroy(domain_);
  }
#else
  NvtxDomain() = default;
#endif
  NvtxDomain(const NvtxDomain&) = delete;
  NvtxDomain& operator=(const NvtxDomain&) = delete;

  // From here to the end of the object that it returns, on this thread: the kernels that are launched meanwhile are
  // shown under the name of the batch.
  class Range {
   public:
#ifdef GEMMD_WITH_NVTX
    Range(nvtxDomainHandle_t domain, const Batch& batch) : domain_(domain) {
      // NVTX gives no domain when nobody listens.
      if (domain_ == nullptr) return;
      const std::string name = RangeName(batch);
      nvtxEventAttributes_t event{};
      event.version = NVTX_VERSION;
      event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
      event.messageType = NVTX_MESSAGE_TYPE_ASCII;
      event.message.ascii = name.c_str();
      nvtxDomainRangePushEx(domain_, &event);
    }
    ~Range() {
      if (domain_ != nullptr) nvtxDomainRangePop(domain_);
    }
#else
    Range() = default;
    ~Range() {}  // Not trivial, so that an unused range is no warning.
#endif
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

   private:
#ifdef GEMMD_WITH_NVTX
    nvtxDomainHandle_t domain_;
#endif
  };

#ifdef GEMMD_WITH_NVTX
  Range Begin(const Batch& batch) const { return Range(domain_, batch); }

 private:
  nvtxDomainHandle_t domain_;
#else
  Range Begin(const Batch&) const { return Range(); }
#endif
};

}  // namespace gemmd

#endif  // GEMMD_GPU_CUDA_NVTX_RANGE_H_
