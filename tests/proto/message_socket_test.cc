// SPDX-License-Identifier: Apache-2.0
#include "proto/message_socket.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <iterator>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace gemmd {
namespace {

int OpenDescriptors() {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

class MessageSocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    sender_ = UniqueFd(ends[0]);
    receiver_ = UniqueFd(ends[1]);
    open_before_ = OpenDescriptors();
  }
  void TearDown() override { EXPECT_EQ(OpenDescriptors(), open_before_); }

  // As no code of ours does: any number of descriptors and any length.
  void SendRaw(const std::string& bytes, int descriptors) {
    iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
    std::vector<char> control(CMSG_SPACE(sizeof(int) * static_cast<size_t>(descriptors)));
    msghdr header{};
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * static_cast<size_t>(descriptors));
    const std::vector<int> fds(static_cast<size_t>(descriptors), sender_.get());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
    ASSERT_GE(sendmsg(sender_.get(), &header, MSG_NOSIGNAL), 0) << errno;
  }

  UniqueFd sender_;
  UniqueFd receiver_;
  int open_before_ = 0;
};

TEST_F(MessageSocketTest, BytesArriveAsSent) {
  const uint64_t value = 0x1234567890;
  ASSERT_TRUE(SendStruct(sender_.get(), value).ok());
  const auto message = ReceiveMessage(receiver_.get());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->bytes, std::string(reinterpret_cast<const char*>(&value), sizeof(value)));
  EXPECT_FALSE(message->fd.valid());
  EXPECT_EQ(message->descriptor_count, 0);
}

TEST_F(MessageSocketTest, ADescriptorArrivesCloseOnExec) {
  ASSERT_TRUE(SendStruct(sender_.get(), 1, sender_.get()).ok());
  const auto message = ReceiveMessage(receiver_.get());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->descriptor_count, 1);
  EXPECT_EQ(fcntl(message->fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST_F(MessageSocketTest, DescriptorsBeyondTheFirstAreClosed) {
  for (const int count : {2, 17, 253}) {
    SendRaw("x", count);
    const auto message = ReceiveMessage(receiver_.get());
    ASSERT_TRUE(message.ok());
    EXPECT_EQ(message->descriptor_count, count);
    EXPECT_EQ(OpenDescriptors(), open_before_ + 1);
  }
}

TEST_F(MessageSocketTest, OversizeMessagesAreRefusedWithTheirDescriptorsClosed) {
  SendRaw(std::string(kMaxSocketMessage + 1, 'x'), 3);
  EXPECT_EQ(ReceiveMessage(receiver_.get()).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(SendStruct(sender_.get(), 1).ok());
  EXPECT_TRUE(ReceiveMessage(receiver_.get()).ok());  // The socket still works.
}

TEST_F(MessageSocketTest, TheLongestMessagePasses) {
  SendRaw(std::string(kMaxSocketMessage, 'x'), 1);
  const auto message = ReceiveMessage(receiver_.get());
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->bytes.size(), kMaxSocketMessage);
}

TEST_F(MessageSocketTest, EmptyAndOverlongMessagesAreNotSent) {
  EXPECT_EQ(SendMessage(sender_.get(), {}).code(), absl::StatusCode::kInvalidArgument);
  const std::vector<std::byte> bytes(kMaxSocketMessage + 1);
  EXPECT_EQ(SendMessage(sender_.get(), bytes).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(MessageSocketTest, AClosedPeerIsUnavailableOnBothSides) {
  sender_.Reset();
  --open_before_;
  EXPECT_EQ(ReceiveMessage(receiver_.get()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(SendStruct(receiver_.get(), 1).code(), absl::StatusCode::kUnavailable);
}

TEST_F(MessageSocketTest, WhatAPeerSaidBeforeItClosedIsHeardEvenIfItLeftOurMessageUnread) {
  constexpr int kSaid = 7;
  ASSERT_TRUE(SendStruct(receiver_.get(), kSaid).ok());
  ASSERT_TRUE(SendStruct(sender_.get(), 8).ok());
  receiver_.Reset();
  --open_before_;
  const auto message = ReceiveMessage(sender_.get());
  ASSERT_TRUE(message.ok()) << message.status();
  ASSERT_EQ(message->bytes.size(), sizeof(kSaid));
  EXPECT_EQ(std::memcmp(message->bytes.data(), &kSaid, sizeof(kSaid)), 0);
}

TEST_F(MessageSocketTest, ANonBlockingSocketSaysThatItIsEmptyOrFull) {
  fcntl(receiver_.get(), F_SETFL, O_NONBLOCK);
  fcntl(sender_.get(), F_SETFL, O_NONBLOCK);
  EXPECT_EQ(ReceiveMessage(receiver_.get()).status().code(), absl::StatusCode::kDeadlineExceeded);
  absl::Status status;
  for (int i = 0; i < 100'000 && status.ok(); ++i) status = SendStruct(sender_.get(), i);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(MessageSocketTest, DescriptorsOfUnreadMessagesDoNotLeak) {
  SendRaw("x", 5);
  receiver_.Reset();
  --open_before_;
}

}  // namespace
}  // namespace gemmd
