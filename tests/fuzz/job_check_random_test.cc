// SPDX-License-Identifier: Apache-2.0
// The fuzz target without a fuzzer: seeded mutations of valid jobs, and plain noise.
#include "tests/fuzz/job_check_fuzz.h"
#include "tests/gpu/job_samples.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace gemmd {
namespace {

using namespace testing;  // NOLINT: the samples.

constexpr uint64_t kSeed = 20240607;
constexpr int kIterations = 20000;
constexpr size_t kBegin = 1;  // Of the descriptor in an input.
constexpr uint64_t kInteresting[] = {
    0,          1,     15,         16,         128,        0x7fffffff,        0x80000000,
    0xffffffff, ~0ull, 1ull << 63, 1ull << 40, 1ull << 20, 0x7fffffffffffffff};

std::vector<uint8_t> Bytes(const JobDescriptor& job) {
  // Over zeros, whose number is 0.
  std::vector<uint8_t> bytes(kBegin + sizeof(job) + 256);
  std::memcpy(bytes.data() + kBegin, &job, sizeof(job));
  const std::vector<int32_t> groups = SampleGroups(job);
  if (!groups.empty()) {
    std::memcpy(bytes.data() + kBegin + sizeof(job), groups.data(), groups.size() * sizeof(int32_t));
  }
  return bytes;
}

TEST(JobCheckRandomTest, MutatedJobsNeverLeaveTheirMemory) {
  std::mt19937_64 random(kSeed);
  const std::vector<JobDescriptor> jobs = {DenseJob(),
                                           DenseJob(Scaling::k1D1D),
                                           DenseJob(Scaling::kNone),
                                           ContiguousJob(GroupEncoding::kOffsets),
                                           ContiguousJob(GroupEncoding::kRowIndex),
                                           ContiguousJob(GroupEncoding::kAlignedEnds),
                                           MaskedJob(),
                                           KGroupedJob(),
                                           QuantizeJob(),
                                           CopyJob()};
  for (int i = 0; i < kIterations; ++i) {
    std::vector<uint8_t> bytes = Bytes(jobs[random() % jobs.size()]);
    for (uint64_t changes = random() % 3; changes > 0; --changes) {
      const size_t word = kBegin + random() % ((bytes.size() - kBegin) / 8) * 8;
      const uint64_t value = random() % 2 == 0 ? kInteresting[random() % std::size(kInteresting)] : random();
      const size_t width = size_t{1} << (random() % 4);
      std::memcpy(bytes.data() + word, &value, width);
    }
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
}

TEST(JobCheckRandomTest, NoiseIsRefusedWithAReason) {
  std::mt19937_64 random(kSeed);
  std::vector<uint8_t> bytes(kBegin + sizeof(JobDescriptor));
  for (int i = 0; i < kIterations; ++i) {
    for (size_t j = kBegin; j < bytes.size(); ++j) bytes[j] = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes.data(), random() % (bytes.size() + 1));
  }
}

}  // namespace
}  // namespace gemmd
