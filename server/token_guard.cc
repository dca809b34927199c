// SPDX-License-Identifier: Apache-2.0
#include "server/token_guard.h"

#include "proto/bearer_token.h"

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>

#include <iterator>
#include <string>
#include <utility>

namespace gemmd {
namespace {

using Metadata = grpc::AuthMetadataProcessor::InputMetadata;

constexpr char kPathMetadata[] = ":path";
constexpr char kHealthService[] = "/grpc.health.v1.Health/";

absl::string_view View(const grpc::string_ref& text) { return absl::string_view(text.data(), text.size()); }

bool IsHealthCheck(const Metadata& metadata) {
  const auto path = metadata.find(kPathMetadata);
  return path != metadata.end() && absl::StartsWith(View(path->second), kHealthService);
}

// Of a call without a usable one: empty, which no file accepts.
absl::string_view TokenOf(const Metadata& metadata) {
  const auto [begin, end] = metadata.equal_range(kAuthorizationMetadata);
  if (std::distance(begin, end) != 1) return "";
  const absl::string_view value = View(begin->second);
  // The scheme is not case-sensitive.
  if (!absl::StartsWithIgnoreCase(value, kBearerPrefix)) return "";
  return value.substr(std::size(kBearerPrefix) - 1);
}

grpc::string_ref Ref(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

// What gRPC's own credentials do for a processor, without a second thread.
void ProcessMetadata(void* state, grpc_auth_context*, const grpc_metadata* entries, size_t count,
                     grpc_process_auth_metadata_done_cb done, void* user_data) {
  Metadata metadata;
  for (size_t i = 0; i < count; ++i) metadata.emplace(Ref(entries[i].key), Ref(entries[i].value));
  const grpc::Status status = (*static_cast<std::shared_ptr<TokenGuard>*>(state))->Check(metadata);
  done(user_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.error_code()),
       status.error_message().c_str());
}

void DestroyState(void* state) { delete static_cast<std::shared_ptr<TokenGuard>*>(state); }

class GuardedPlainCredentials final : public grpc::ServerCredentials {
 public:
  explicit GuardedPlainCredentials(std::shared_ptr<TokenGuard> guard) : guard_(std::move(guard)) {}

  // Made with its processor.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    grpc_server_credentials* credentials = grpc_insecure_server_credentials_create();
    grpc_server_credentials_set_auth_metadata_processor(
        credentials, {&ProcessMetadata, &DestroyState, new std::shared_ptr<TokenGuard>(guard_)});
    const int port = grpc_server_add_http2_port(server, address.c_str(), credentials);
    grpc_server_credentials_release(credentials);
    return port;
  }

  const std::shared_ptr<TokenGuard> guard_;
};

}  // namespace

grpc::Status TokenGuard::Check(const InputMetadata& metadata) const {
  if (IsHealthCheck(metadata)) return grpc::Status::OK;
  const absl::string_view token = TokenOf(metadata);
  if (!token.empty() && tokens_->Accepts(token)) return grpc::Status::OK;
  on_refused_();
  return {grpc::StatusCode::UNAUTHENTICATED, token.empty()
                                                 ? "authorization: expected \"Bearer TOKEN\" once, got none"
                                                 : "authorization: expected a token of this gemmd, got another"};
}

std::shared_ptr<grpc::ServerCredentials> PlainCredentials(std::shared_ptr<TokenGuard> guard) {
  if (guard == nullptr) return grpc::InsecureServerCredentials();
  return std::make_shared<GuardedPlainCredentials>(std::move(guard));
}

}  // namespace gemmd
