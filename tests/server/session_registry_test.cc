// SPDX-License-Identifier: Apache-2.0
#include "server/session_registry.h"

#include "tests/server/service_fixture.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

constexpr Identity kRemote{.remote = true, .uid = 0};
constexpr Identity kAlice{.remote = false, .uid = 1001};
constexpr Identity kBob{.remote = false, .uid = 1002};

TEST(SessionRegistryTest, OpenedSessionIsFoundByItsCredentials) {
  FrontEndState state;
  auto session = state.sessions.Open(kAlice, "trainer");
  ASSERT_TRUE(session.ok()) << session.status();
  auto found = state.sessions.Authenticate((*session)->id(), (*session)->SecretHex());
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, *session);
  EXPECT_EQ((*found)->client_name(), "trainer");
}

TEST(SessionRegistryTest, SecretsDiffer) {
  FrontEndState state;
  EXPECT_NE((*state.sessions.Open(kAlice, ""))->secret(), (*state.sessions.Open(kAlice, ""))->secret());
}

TEST(SessionRegistryTest, UnknownEndedAndForgedGetTheSameRefusal) {
  FrontEndState state;
  auto session = *state.sessions.Open(kAlice, "");
  auto ended = *state.sessions.Open(kAlice, "");
  state.sessions.Close(ended->id());
  std::string forged = session->SecretHex();
  forged[31] = forged[31] == '0' ? '1' : '0';
  const absl::Status wrong = state.sessions.Authenticate(session->id(), forged).status();
  EXPECT_EQ(wrong.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(wrong, state.sessions.Authenticate(999, forged).status());
  EXPECT_EQ(wrong, state.sessions.Authenticate(ended->id(), ended->SecretHex()).status());
  EXPECT_EQ(state.sessions.Counts().unauthenticated_total, 3u);
}

TEST(SessionRegistryTest, MalformedSecretsAreRefused) {
  FrontEndState state;
  auto session = *state.sessions.Open(kAlice, "");
  const std::string secret = session->SecretHex();
  for (const std::string& bad : {std::string(), secret.substr(1), secret + "0", std::string(32, 'x'),
                                 std::string(32, '\0'), std::string(32, '0')}) {
    EXPECT_TRUE(absl::IsUnauthenticated(state.sessions.Authenticate(session->id(), bad).status())) << bad;
  }
  EXPECT_TRUE(absl::IsUnauthenticated(state.sessions.Authenticate(0, std::string(32, '0')).status()));
}

TEST(SessionRegistryTest, ClientNamesArePrintableAndBounded) {
  FrontEndState state;
  EXPECT_TRUE(state.sessions.Open(kAlice, std::string(63, 'x')).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(state.sessions.Open(kAlice, std::string(64, 'x')).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(state.sessions.Open(kAlice, "line\nbreak").status()));
}

TEST(SessionRegistryTest, SessionsOfOneUserAreBounded) {
  FrontEndState state(Quotas{.sessions = 3, .sessions_per_uid = 2});
  auto first = *state.sessions.Open(kAlice, "");
  EXPECT_TRUE(state.sessions.Open(kAlice, "").ok());
  EXPECT_TRUE(absl::IsResourceExhausted(state.sessions.Open(kAlice, "").status()));
  EXPECT_TRUE(state.sessions.Open(kBob, "").ok());
  state.sessions.Close(first->id());
  EXPECT_TRUE(state.sessions.Open(kAlice, "").ok());
}

TEST(SessionRegistryTest, EndsAreCountedByWhy) {
  FrontEndState state;
  for (const SessionEnd end : {SessionEnd::kClient, SessionEnd::kCutOff, SessionEnd::kShutdown, SessionEnd::kClient}) {
    state.sessions.Close((*state.sessions.Open(kAlice, ""))->id(), end);
  }
  EXPECT_TRUE(state.sessions.Open(kRemote, "").ok());
  const SessionCounts counts = state.sessions.Counts();
  EXPECT_EQ(counts.closed_total, (std::array<uint64_t, kSessionEndCount>{2, 1, 1}));
  EXPECT_EQ(counts.opened_local_total, 4u);
  EXPECT_EQ(counts.opened_remote_total, 1u);
}

TEST(SessionRegistryTest, SessionsInAllAreBounded) {
  FrontEndState state(Quotas{.sessions = 2, .sessions_per_uid = 2});
  EXPECT_TRUE(state.sessions.Open(kAlice, "").ok());
  EXPECT_TRUE(state.sessions.Open(kRemote, "").ok());
  EXPECT_TRUE(absl::IsResourceExhausted(state.sessions.Open(kBob, "").status()));
  const SessionCounts counts = state.sessions.Counts();
  EXPECT_EQ(counts.open_local, 1u);
  EXPECT_EQ(counts.open_remote, 1u);
  EXPECT_EQ(counts.refused_total, 1u);
}

TEST(SessionRegistryTest, JobsInFlightAreBounded) {
  FrontEndState state(Quotas{.jobs_per_session = 2});
  auto session = *state.sessions.Open(kAlice, "");
  auto first = session->AdmitJob();
  auto second = session->AdmitJob();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(session->AdmitJob().status()));
  *first = JobTicket();
  EXPECT_EQ(session->jobs_in_flight(), 1u);
  EXPECT_TRUE(session->AdmitJob().ok());
}

TEST(SessionRegistryTest, JobsOfAllSessionsOfOneUserAreBounded) {
  FrontEndState state(Quotas{.jobs_per_session = 2, .jobs_per_uid = 3});
  auto first = *state.sessions.Open(kAlice, "");
  auto second = *state.sessions.Open(kAlice, "");
  std::vector<JobTicket> tickets;
  for (const auto& session : {first, first, second}) tickets.push_back(*session->AdmitJob());
  const absl::Status refused = second->AdmitJob().status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(second->jobs_in_flight(), 1u) << "a job that was refused is not counted";
  EXPECT_TRUE((*state.sessions.Open(kBob, ""))->AdmitJob().ok()) << "another user's jobs do not count";
  tickets.pop_back();
  EXPECT_TRUE(second->AdmitJob().ok());
}

TEST(SessionRegistryTest, ANewSessionDoesNotForgetTheJobsOfAnEndedOne) {
  FrontEndState state(Quotas{.jobs_per_uid = 1});
  auto session = *state.sessions.Open(kAlice, "");
  JobTicket running = *session->AdmitJob();
  state.sessions.Close(session->id());
  session.reset();
  auto next = *state.sessions.Open(kAlice, "");
  EXPECT_TRUE(absl::IsResourceExhausted(next->AdmitJob().status()));
  running = JobTicket();
  EXPECT_TRUE(next->AdmitJob().ok());
}

TEST(SessionRegistryTest, MovedTicketCountsOnce) {
  FrontEndState state;
  auto session = *state.sessions.Open(kAlice, "");
  {
    JobTicket ticket = *session->AdmitJob();
    JobTicket moved = std::move(ticket);
    EXPECT_EQ(session->jobs_in_flight(), 1u);
  }
  EXPECT_EQ(session->jobs_in_flight(), 0u);
}

TEST(SessionRegistryTest, EndedSessionAdmitsNoJobs) {
  FrontEndState state;
  auto session = *state.sessions.Open(kAlice, "");
  state.sessions.Close(session->id());
  state.sessions.Close(session->id());
  EXPECT_TRUE(session->closed());
  EXPECT_TRUE(absl::IsUnauthenticated(session->AdmitJob().status()));
}

TEST(SessionRegistryTest, AnonymousSessionOwnsNothing) {
  FrontEndState state;
  const auto& anonymous = state.sessions.anonymous();
  EXPECT_TRUE(anonymous->AdmitJob().ok());
  EXPECT_TRUE(absl::IsUnauthenticated(
      RegisterHost(*state.regions, anonymous, RegionExtent{4096, true}, SealedMemory(4096)).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(state.regions->Find(*anonymous, 1).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(CreateTensor(*state.tensors, anonymous, {DType::kU8, {16}, "x", true}).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(state.tensors->Find(*anonymous, 1).status()));
}

TEST(SessionRegistryTest, ClosingFreesWhatTheSessionOwns) {
  FrontEndState state;
  const size_t regions_before = state.pool.region_count();
  auto session = *state.sessions.Open(kAlice, "");
  ASSERT_TRUE(RegisterHost(*state.regions, session, RegionExtent{4096, true}, SealedMemory(4096)).ok());
  ASSERT_TRUE(CreateTensor(*state.tensors, session, {DType::kF32, {16, 16}, "", false}).ok());
  EXPECT_EQ(state.pool.region_count(), regions_before + 2);
  state.sessions.Close(session->id());
  state.pool.Drain();
  EXPECT_EQ(state.pool.region_count(), regions_before);
  EXPECT_EQ(state.regions->Counts().regions(), 0u);
  EXPECT_EQ(state.regions->Counts().reaped_total, 1u);
  EXPECT_EQ(state.tensors->Counts().bytes, 0u);
}

}  // namespace
}  // namespace gemmd
