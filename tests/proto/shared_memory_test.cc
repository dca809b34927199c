// SPDX-License-Identifier: Apache-2.0
#include "proto/shared_memory.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

absl::StatusCode Check(int fd, uint64_t byte_size) { return CheckSealedMemory(fd, byte_size).code(); }

TEST(SharedMemoryTest, CreatedMemoryPassesTheCheckUpToItsSize) {
  const auto fd = CreateSealedMemory(4096);
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(Check(fd->get(), 4096), absl::StatusCode::kOk);
  EXPECT_EQ(Check(fd->get(), 4097), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Check(fd->get(), ~uint64_t{0}), absl::StatusCode::kInvalidArgument);
}

TEST(SharedMemoryTest, CreatedMemoryCannotChangeItsSize) {
  const auto fd = CreateSealedMemory(4096);
  EXPECT_NE(ftruncate(fd->get(), 0), 0);
  EXPECT_NE(ftruncate(fd->get(), 8192), 0);
}

TEST(SharedMemoryTest, ImpossibleSizesAreRefused) {
  EXPECT_EQ(CreateSealedMemory(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateSealedMemory(~uint64_t{0}).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(SharedMemoryTest, EachMissingSealIsRefused) {
  for (const int seals :
       {0, F_SEAL_SHRINK, F_SEAL_SHRINK | F_SEAL_GROW, F_SEAL_SHRINK | F_SEAL_SEAL, F_SEAL_GROW | F_SEAL_SEAL}) {
    const UniqueFd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(ftruncate(fd.get(), 4096), 0);
    ASSERT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    EXPECT_EQ(Check(fd.get(), 4096), absl::StatusCode::kInvalidArgument) << seals;
  }
}

TEST(SharedMemoryTest, OtherTypesOfDescriptorsAreRefused) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]), write_end(ends[1]);
  const UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd directory(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const UniqueFd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  for (const UniqueFd* fd : {&read_end, &socket_fd, &null, &directory, &file}) {
    EXPECT_EQ(Check(fd->get(), 1), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(CheckSealedMemory(-1, 1).ok());
}

TEST(SharedMemoryTest, MappingsShareTheirBytes) {
  const auto fd = CreateSealedMemory(4096);
  const auto writer = SharedMapping::Map(fd->get(), 4096, Access::kReadWrite);
  const auto reader = SharedMapping::Map(fd->get(), 4096, Access::kReadOnly);
  ASSERT_TRUE(writer.ok() && reader.ok());
  writer->data()[100] = std::byte{7};
  EXPECT_EQ(reader->data()[100], std::byte{7});
}

TEST(SharedMemoryTest, AReadOnlyDescriptorCannotBeMappedForWriting) {
  const auto fd = CreateSealedMemory(4096);
  const std::string path = "/proc/self/fd/" + std::to_string(fd->get());
  const UniqueFd read_only(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(SharedMapping::Map(read_only.get(), 4096, Access::kReadWrite).ok());
  EXPECT_TRUE(SharedMapping::Map(read_only.get(), 4096, Access::kReadOnly).ok());
}

TEST(SharedMemoryTest, MovedMappingsUnmapOnce) {
  const auto fd = CreateSealedMemory(4096);
  auto first = SharedMapping::Map(fd->get(), 4096, Access::kReadWrite);
  SharedMapping second = *std::move(first);
  EXPECT_EQ(first->data(), nullptr);
  second = SharedMapping();
}

}  // namespace
}  // namespace gemmd
