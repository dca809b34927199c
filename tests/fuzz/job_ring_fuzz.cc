// SPDX-License-Identifier: Apache-2.0
// The worker's end of a ring whose memory holds anything. Input: bytes that are XORed over a valid ring of four slots
// before it is opened, of which those beyond its header come again after that.
#include "proto/job_ring.h"

#include "proto/shared_memory.h"
#include "tests/fuzz/require.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>

namespace gemmd {
namespace {

constexpr uint32_t kSlots = 4;

void Change(const SharedMapping& mapping, const uint8_t* data, size_t size) {
  const size_t count = std::min<size_t>(size, mapping.byte_size());
  for (size_t i = 0; i < count; ++i) mapping.data()[i] ^= static_cast<std::byte>(data[i]);
}

// Reads and writes as the worker does, never past what the ring holds.
void Serve(JobRing& ring) {
  SubmissionReader reader(ring.submissions(), ring.descriptor_slots(), ring.slots());
  CompletionWriter writer(ring.completions(), ring.completion_slots(), ring.slots());
  JobDescriptor job;
  uint32_t read = 0;
  while (reader.Read(job) == RingRead::kItem) Require(++read <= ring.slots());
  JobCompletion completion;
  uint32_t written = 0;
  while (writer.Write(completion)) Require(++written <= ring.slots());
}

}  // namespace
}  // namespace gemmd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto client = gemmd::JobRing::Create(gemmd::kSlots);
  gemmd::Require(client.ok());
  struct stat status {};
  gemmd::Require(fstat(client->fd(), &status) == 0);
  const auto mapping =
      gemmd::SharedMapping::Map(client->fd(), static_cast<uint64_t>(status.st_size), gemmd::Access::kReadWrite);
  gemmd::Require(mapping.ok());
  gemmd::Change(*mapping, data, size);
  absl::StatusOr<gemmd::JobRing> ring = gemmd::JobRing::Open(gemmd::UniqueFd(fcntl(client->fd(), F_DUPFD_CLOEXEC, 0)));
  if (!ring.ok()) return 0;
  gemmd::Serve(*ring);
  // The header may change after it was checked: what was read once must not be read again.
  gemmd::Change(*mapping, data, size);
  const uint32_t impossible = ~uint32_t{0};
  std::memcpy(mapping->data() + offsetof(gemmd::RingHeader, slots), &impossible, sizeof(impossible));
  gemmd::Serve(*ring);
  return 0;
}
