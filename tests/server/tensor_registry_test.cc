// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_registry.h"

#include "tests/server/service_fixture.h"

#include "absl/synchronization/notification.h"
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>

namespace gemmd {
namespace {

constexpr Identity kAlice{.remote = false, .uid = 1001};
constexpr Identity kBob{.remote = false, .uid = 1002};
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

class TensorRegistryTest : public testing::Test {
 protected:
  absl::StatusOr<TensorRecord> Create(const std::shared_ptr<Session>& session, const TensorSpec& spec) {
    return CreateTensor(*state_.tensors, session, spec);
  }

  // In the session's name, on any worker.
  TensorView Reserve(const std::shared_ptr<Session>& session, const TensorSpec& spec) {
    absl::Notification called;
    absl::StatusOr<TensorView> reserved;
    tensors_.Reserve(session, spec, kAnyWorker, [&](absl::StatusOr<TensorView> view) {
      reserved = std::move(view);
      called.Notify();
    });
    called.WaitForNotification();
    EXPECT_TRUE(reserved.ok()) << reserved.status();
    return *std::move(reserved);
  }

  FrontEndState state_{Quotas{.tensors_per_session = 4,
                              .tensors_per_uid = 6,
                              .tensor_bytes_per_session = 1 << 20,
                              .tensor_bytes_per_uid = 1 << 20}};
  TensorRegistry& tensors_ = *state_.tensors;
  std::shared_ptr<Session> alice_ = *state_.sessions.Open(kAlice, "");
  std::shared_ptr<Session> alice2_ = *state_.sessions.Open(kAlice, "");
  std::shared_ptr<Session> bob_ = *state_.sessions.Open(kBob, "");
};

TEST_F(TensorRegistryTest, CreatedTensorIsFoundWithItsShape) {
  const auto record = Create(alice_, {DType::kF32, {2, 3, 4}, "", false});
  ASSERT_TRUE(record.ok()) << record.status();
  const auto view = tensors_.Find(*alice_, record->id);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->byte_size, 96u);
  EXPECT_EQ(view->rank, 3);
  EXPECT_EQ(view->shape[2], 4);
  EXPECT_EQ(view->worker, 0);
}

TEST_F(TensorRegistryTest, NobodyUsesATensorWhoseCreationIsAnswered) {
  std::vector<TensorSnapshot> tensors;
  absl::Notification answered;
  tensors_.CreateTensor(alice_, {DType::kU8, {16}, "", false}, [&](const absl::StatusOr<TensorRecord>& record) {
    EXPECT_TRUE(record.ok()) << record.status();
    tensors = tensors_.Snapshot(10);
    answered.Notify();
  });
  answered.WaitForNotification();
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].pins, 0);
}

TEST_F(TensorRegistryTest, PrivateForeignAndUnknownGetTheSameRefusal) {
  const auto record = Create(alice_, {DType::kU8, {16}, "mine", false});
  const absl::Status foreign = tensors_.Find(*alice2_, record->id).status();
  EXPECT_EQ(foreign.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(foreign, tensors_.Find(*alice2_, 987654).status());
  EXPECT_EQ(foreign, tensors_.Get(*alice2_, record->id).status());
  EXPECT_EQ(foreign, tensors_.GetByName(*alice2_, "mine").status());
  EXPECT_EQ(foreign, tensors_.Delete(*bob_, record->id));
  EXPECT_TRUE(tensors_.List(*alice2_).empty());
}

TEST_F(TensorRegistryTest, SharedTensorIsForSessionsOfOneUser) {
  const auto record = Create(alice_, {DType::kU8, {16}, "weights", true});
  ASSERT_TRUE(record.ok());
  const auto found = tensors_.GetByName(*alice2_, "weights");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->id, record->id);
  EXPECT_EQ(found->references, 2u);
  EXPECT_TRUE(absl::IsNotFound(tensors_.GetByName(*bob_, "weights").status()));
  EXPECT_TRUE(absl::IsNotFound(tensors_.Find(*bob_, record->id).status()));
  EXPECT_TRUE(absl::IsNotFound(tensors_.Delete(*bob_, record->id)));
  EXPECT_TRUE(Create(bob_, {DType::kU8, {16}, "weights", true}).ok());
}

TEST_F(TensorRegistryTest, SharedTensorStaysUntilDeleted) {
  const auto record = Create(alice_, {DType::kU8, {16}, "weights", true});
  state_.sessions.Close(alice_->id());
  const auto found = tensors_.Get(*alice2_, record->id);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->references, 1u);
  EXPECT_TRUE(tensors_.Delete(*alice2_, record->id).ok());
  state_.pool.Drain();
  EXPECT_EQ(tensors_.Counts().bytes, 0u);
}

TEST_F(TensorRegistryTest, SharedNamesAreUniqueAndReusable) {
  const auto record = Create(alice_, {DType::kU8, {16}, "weights", true});
  EXPECT_TRUE(absl::IsAlreadyExists(Create(alice2_, {DType::kU8, {16}, "weights", true}).status()));
  EXPECT_TRUE(tensors_.Delete(*alice2_, record->id).ok());
  EXPECT_TRUE(Create(alice2_, {DType::kU8, {16}, "weights", true}).ok());
}

TEST_F(TensorRegistryTest, BadSpecsAreRefused) {
  const TensorSpec bad[] = {
      {DType::kNone, {16}, "", false},
      {static_cast<DType>(77), {16}, "", false},
      {DType::kU8, {}, "", false},
      {DType::kU8, {1, 1, 1, 1}, "", false},
      {DType::kU8, {0}, "", false},
      {DType::kU8, {-1, -1}, "", false},
      {DType::kI64, {kHuge, kHuge, kHuge}, "", false},
      {DType::kI64, {kHuge}, "", false},
      {DType::kU8, {int64_t{1} << 32, int64_t{1} << 32}, "", false},
      {DType::kU8, {16}, "", true},
      {DType::kU8, {16}, "tab\t", true},
      {DType::kU8, {16}, std::string(257, 'x'), true},
  };
  for (const TensorSpec& spec : bad) {
    EXPECT_TRUE(absl::IsInvalidArgument(Create(alice_, spec).status())) << spec.name << spec.shape.size();
  }
  EXPECT_EQ(tensors_.Counts().bytes, 0u);
}

TEST_F(TensorRegistryTest, TensorsOfOneSessionAreBounded) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Create(alice_, {DType::kU8, {16}, "", false}).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(Create(alice_, {DType::kU8, {16}, "", false}).status()));
}

TEST_F(TensorRegistryTest, BytesAreBounded) {
  EXPECT_TRUE(absl::IsResourceExhausted(Create(alice_, {DType::kU8, {(1 << 20) + 1}, "", false}).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(Create(alice_, {DType::kU8, {kHuge}, "", false}).status()));
  EXPECT_TRUE(Create(alice_, {DType::kU8, {1 << 20}, "", false}).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(Create(alice2_, {DType::kU8, {1}, "", false}).status()));
}

TEST_F(TensorRegistryTest, FailedAllocationKeepsNothing) {
  state_.pool.FailNextControl(absl::ResourceExhaustedError("no memory"));
  EXPECT_TRUE(absl::IsResourceExhausted(Create(alice_, {DType::kU8, {16}, "weights", true}).status()));
  EXPECT_EQ(tensors_.Counts().bytes, 0u);
  EXPECT_TRUE(Create(alice_, {DType::kU8, {16}, "weights", true}).ok());
}

TEST_F(TensorRegistryTest, PinnedTensorOutlivesItsDeletion) {
  const size_t before = state_.pool.region_count();
  const auto record = Create(alice_, {DType::kU8, {16}, "", false});
  auto view = tensors_.Find(*alice_, record->id);
  ASSERT_TRUE(tensors_.Delete(*alice_, record->id).ok());
  EXPECT_TRUE(absl::IsNotFound(tensors_.Find(*alice_, record->id).status()));
  state_.pool.Drain();
  EXPECT_EQ(state_.pool.region_count(), before + 1);
  EXPECT_EQ(tensors_.Counts().bytes, 16u);
  view = absl::CancelledError("done with it");
  state_.pool.Drain();
  EXPECT_EQ(state_.pool.region_count(), before);
  EXPECT_EQ(tensors_.Counts().bytes, 0u);
}

TEST_F(TensorRegistryTest, SessionThatEndsWhileAllocatingLeavesNothing) {
  const size_t before = state_.pool.region_count();
  state_.pool.Pause();
  absl::StatusOr<TensorRecord> result;
  tensors_.CreateTensor(alice_, {DType::kU8, {16}, "", false},
                        [&](const absl::StatusOr<TensorRecord>& record) { result = record; });
  state_.sessions.Close(alice_->id());
  state_.pool.Resume();
  state_.pool.Drain();
  EXPECT_TRUE(absl::IsUnauthenticated(result.status()));
  EXPECT_EQ(state_.pool.region_count(), before);
  EXPECT_EQ(tensors_.Counts().bytes, 0u);
}

TEST_F(TensorRegistryTest, ReservedTensorHasItsNameButCannotBeNamed) {
  TensorView view = Reserve(alice_, {DType::kU8, {16}, "weights", true});
  EXPECT_TRUE(absl::IsNotFound(tensors_.Find(*alice_, view.region_id).status()));
  EXPECT_TRUE(absl::IsNotFound(tensors_.GetByName(*alice2_, "weights").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(Create(alice2_, {DType::kU8, {16}, "weights", true}).status()));
  const auto record = tensors_.Publish(view.region_id, 0);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(tensors_.GetByName(*alice2_, "weights")->id, record->id);
}

TEST_F(TensorRegistryTest, DiscardedTensorLeavesNothing) {
  const size_t before = state_.pool.region_count();
  TensorView view = Reserve(alice_, {DType::kU8, {16}, "weights", true});
  tensors_.Discard(view.region_id);
  EXPECT_TRUE(Create(alice_, {DType::kU8, {16}, "weights", true}).ok());
  EXPECT_EQ(state_.pool.region_count(), before + 2);
  view = TensorView();
  state_.pool.Drain();
  EXPECT_EQ(state_.pool.region_count(), before + 1);
  EXPECT_EQ(tensors_.Counts().bytes, 16u);
}

TEST_F(TensorRegistryTest, SessionThatEndsBeforePublishingTakesBothTensorsAlong) {
  const size_t before = state_.pool.region_count();
  {
    const TensorView tensor = Reserve(alice_, {DType::kE4m3, {16, 16}, "", false});
    const TensorView scales = Reserve(alice_, {DType::kF32, {1, 1}, "", false});
    state_.sessions.Close(alice_->id());
    EXPECT_TRUE(absl::IsUnauthenticated(tensors_.Publish(tensor.region_id, scales.region_id).status()));
  }
  state_.pool.Drain();
  EXPECT_EQ(state_.pool.region_count(), before);
  EXPECT_EQ(tensors_.Counts().bytes, 0u);
}

TEST_F(TensorRegistryTest, ScaleFactorsGoWithTheirTensor) {
  const uint64_t tensor = Reserve(alice_, {DType::kE4m3, {16, 16}, "w", true}).region_id;
  const uint64_t scales = Reserve(alice_, {DType::kF32, {1, 1}, "w.sf", true}).region_id;
  ASSERT_TRUE(tensors_.Publish(tensor, scales).ok());
  EXPECT_EQ(tensors_.GetByName(*alice2_, "w")->sf_id, scales);
  EXPECT_EQ(tensors_.GetByName(*alice2_, "w.sf")->sf_id, 0u);
  ASSERT_TRUE(tensors_.Delete(*alice_, tensor).ok());
  EXPECT_TRUE(absl::IsNotFound(tensors_.Find(*alice_, scales).status()));
}

TEST_F(TensorRegistryTest, ScaleFactorsThatWentFirstAreNoLongerTold) {
  const uint64_t tensor = Reserve(alice_, {DType::kE4m3, {16, 16}, "w", true}).region_id;
  const uint64_t scales = Reserve(alice_, {DType::kF32, {1, 1}, "w.sf", true}).region_id;
  ASSERT_TRUE(tensors_.Publish(tensor, scales).ok());
  ASSERT_TRUE(tensors_.Delete(*alice_, scales).ok());
  EXPECT_EQ(tensors_.Get(*alice_, tensor)->sf_id, 0u);
  EXPECT_TRUE(tensors_.Delete(*alice_, tensor).ok());
}

TEST_F(TensorRegistryTest, TensorOfTheManifestIsForEverybodyToRead) {
  const auto daemon = std::make_shared<Session>(
      Session::Parameters{.id = 1u << 20, .identity = kDaemonIdentity, .client_name = "manifest"});
  const auto record = Create(daemon, {DType::kU8, {16}, "w", true, true});
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_TRUE(record->read_only);
  for (const Session* session : {alice_.get(), bob_.get(), state_.sessions.anonymous().get()}) {
    EXPECT_EQ(tensors_.FindByName(*session, "w")->region_id, record->id);
    EXPECT_TRUE(tensors_.Find(*session, record->id).ok());
  }
  EXPECT_TRUE(absl::IsPermissionDenied(tensors_.FindWritable(*alice_, record->id).status()));
  EXPECT_TRUE(absl::IsPermissionDenied(tensors_.Delete(*alice_, record->id)));
  EXPECT_TRUE(absl::IsAlreadyExists(Create(alice_, {DType::kU8, {16}, "w", true}).status()));
  EXPECT_TRUE(Create(alice_, {DType::kU8, {16}, "w", false}).ok());
}

TEST_F(TensorRegistryTest, WithoutASessionOnlyTheManifestCanBeNamed) {
  ASSERT_TRUE(Create(alice_, {DType::kU8, {16}, "w", true}).ok());
  EXPECT_TRUE(absl::IsUnauthenticated(tensors_.FindByName(*state_.sessions.anonymous(), "w").status()));
}

TEST_F(TensorRegistryTest, ListShowsOwnAndSharedByAscendingId) {
  ASSERT_TRUE(Create(alice2_, {DType::kU8, {16}, "shared", true}).ok());
  ASSERT_TRUE(Create(alice2_, {DType::kU8, {16}, "private", false}).ok());
  ASSERT_TRUE(Create(alice_, {DType::kU8, {16}, "own", false}).ok());
  const auto records = tensors_.List(*alice_);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].name, "shared");
  EXPECT_EQ(records[1].name, "own");
  EXPECT_LT(records[0].id, records[1].id);
}

TEST_F(TensorRegistryTest, ViewMayOutliveTheRegistry) {
  absl::StatusOr<TensorView> view;
  {
    FrontEndState state;
    auto session = *state.sessions.Open(kAlice, "");
    view = state.tensors->Find(*session, CreateTensor(*state.tensors, session, {DType::kU8, {16}, "", false})->id);
  }
  EXPECT_TRUE(view.ok());
}

}  // namespace
}  // namespace gemmd
