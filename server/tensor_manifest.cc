// SPDX-License-Identifier: Apache-2.0
#include "server/tensor_manifest.h"

#include "server/session.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <google/protobuf/util/json_util.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <utility>

namespace gemmd {
namespace {

absl::Status Bad(absl::string_view where, absl::string_view expected, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": expected ", expected, ", got ", got));
}

// The session that the tensors are made by: of nobody's, and gone when they are there.
std::shared_ptr<Session> DaemonSession() {
  Session::Parameters parameters;
  parameters.id = std::numeric_limits<uint64_t>::max();  // Ids of clients count from 1.
  parameters.identity = kDaemonIdentity;
  parameters.client_name = "manifest";
  parameters.job_limit = 1;  // Tensors come one after another.
  return std::make_shared<Session>(std::move(parameters));
}

absl::StatusOr<TensorRecord> Load(const TensorMakers& makers, const std::shared_ptr<Session>& session,
                                  const v1::CreateTensorRequest& request) {
  absl::Notification called;
  absl::StatusOr<TensorRecord> record = absl::UnknownError("");
  TensorCreation::Start(makers, {session, /*deadline_ns=*/0, /*everybody=*/true}, request,
                        [&](absl::StatusOr<TensorRecord> result) {
                          record = std::move(result);
                          called.Notify();
                        });
  called.WaitForNotification();
  return record;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream.is_open() || stream.bad()) {
    return absl::InvalidArgumentError(absl::StrCat("expected a readable file, got ", std::strerror(errno)));
  }
  return text;
}

}  // namespace

absl::StatusOr<v1::TensorManifest> ParseTensorManifest(absl::string_view text) {
  v1::TensorManifest manifest;
  const google::protobuf::util::Status parsed =
      google::protobuf::util::JsonStringToMessage(std::string(text), &manifest);
  if (!parsed.ok()) return absl::InvalidArgumentError(std::string(parsed.message()));
  if (manifest.tensors().empty()) return Bad("tensors", "at least one", "none");
  for (int i = 0; i < manifest.tensors_size(); ++i) {
    v1::CreateTensorRequest& tensor = *manifest.mutable_tensors(i);
    const std::string where = absl::StrCat("tensors[", i, "]");
    if (tensor.name().empty()) return Bad(absl::StrCat(where, ".name"), "one", "none");
    if (!tensor.has_file()) return Bad(absl::StrCat(where, ".file"), "a path", "none");
    tensor.set_shared(true);
  }
  return manifest;
}

absl::StatusOr<TensorTotals> LoadTensorManifest(const std::string& path, const TensorMakers& makers) {
  const absl::StatusOr<std::string> text = ReadText(path);
  if (!text.ok()) return text.status();
  const absl::StatusOr<v1::TensorManifest> manifest = ParseTensorManifest(*text);
  if (!manifest.ok()) return manifest.status();
  const std::shared_ptr<Session> session = DaemonSession();
  for (int i = 0; i < manifest->tensors_size(); ++i) {
    const absl::Status status = Load(makers, session, manifest->tensors(i)).status();
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("tensors[", i, "] (", manifest->tensors(i).name(), "): ", status.message()));
    }
  }
  const TensorCounts counts = makers.tensors.Counts();
  return TensorTotals{counts.shared_tensors, counts.bytes};
}

}  // namespace gemmd
