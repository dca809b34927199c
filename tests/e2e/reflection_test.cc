// SPDX-License-Identifier: Apache-2.0
// gRPC server reflection: a client without our .proto files learns the services, and learns them right.
#include "gemmd/v1/admin.pb.h"
#include "gemmd/v1/gemm.pb.h"
#include "gemmd/v1/sessions.pb.h"
#include "gemmd/v1/tensors.pb.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

namespace pb = google::protobuf;
using ::testing::IsSupersetOf;

constexpr char kPackage[] = "grpc.reflection.v1alpha.";
constexpr char kMethod[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

class ReflectionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Debian has no header for the messages of reflection; the server's plugin has their descriptors.
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    auto daemon = testing::Daemon::Start({.flags = {}, .tcp = true});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    channel_ = grpc::CreateChannel(daemon_->tcp_address(), grpc::InsecureChannelCredentials());
  }

  static std::unique_ptr<pb::Message> New(const std::string& name) {
    const pb::Descriptor* type = pb::DescriptorPool::generated_pool()->FindMessageTypeByName(kPackage + name);
    return std::unique_ptr<pb::Message>(pb::MessageFactory::generated_factory()->GetPrototype(type)->New());
  }

  // One question and its answer. To the server one message and the end of the stream are a stream too.
  std::unique_ptr<pb::Message> Ask(const std::string& question) {
    std::unique_ptr<pb::Message> request = New("ServerReflectionRequest");
    EXPECT_TRUE(pb::TextFormat::ParseFromString(question, request.get()));
    const grpc::Slice sent(request->SerializeAsString());
    const grpc::ByteBuffer request_bytes(&sent, 1);
    grpc::ByteBuffer response_bytes;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    grpc::Status status;
    absl::Notification done;
    grpc::GenericStub(channel_).UnaryCall(&context, kMethod, grpc::StubOptions(), &request_bytes, &response_bytes,
                                          [&](grpc::Status result) {
                                            status = std::move(result);
                                            done.Notify();
                                          });
    done.WaitForNotification();
    EXPECT_TRUE(status.ok()) << status.error_message();
    grpc::Slice received;
    EXPECT_TRUE(response_bytes.DumpToSingleSlice(&received).ok());
    std::unique_ptr<pb::Message> response = New("ServerReflectionResponse");
    EXPECT_TRUE(response->ParseFromArray(received.begin(), static_cast<int>(received.size())));
    return response;
  }

  static const pb::Message& Sub(const pb::Message& message, const std::string& field) {
    return message.GetReflection()->GetMessage(message, message.GetDescriptor()->FindFieldByName(field));
  }

  std::vector<std::string> ListServices() {
    const std::unique_ptr<pb::Message> response = Ask("list_services: ''");
    const pb::Message& list = Sub(*response, "list_services_response");
    const pb::FieldDescriptor* service = list.GetDescriptor()->FindFieldByName("service");
    std::vector<std::string> names;
    for (int i = 0; i < list.GetReflection()->FieldSize(list, service); ++i) {
      const pb::Message& entry = list.GetReflection()->GetRepeatedMessage(list, service, i);
      names.push_back(entry.GetReflection()->GetString(entry, entry.GetDescriptor()->FindFieldByName("name")));
    }
    return names;
  }

  // Adds the files of an answer to `pool_`, those that they import first.
  void AddFiles(const std::string& question) {
    const std::unique_ptr<pb::Message> response = Ask(question);
    const pb::Message& files = Sub(*response, "file_descriptor_response");
    const pb::FieldDescriptor* file = files.GetDescriptor()->FindFieldByName("file_descriptor_proto");
    for (int i = 0; i < files.GetReflection()->FieldSize(files, file); ++i) {
      pb::FileDescriptorProto proto;
      ASSERT_TRUE(proto.ParseFromString(files.GetReflection()->GetRepeatedString(files, file, i)));
      if (pool_.FindFileByName(proto.name()) != nullptr) continue;
      for (const std::string& import : proto.dependency()) {
        if (pool_.FindFileByName(import) == nullptr) AddFiles(absl::StrCat("file_by_filename: '", import, "'"));
      }
      if (pool_.FindFileByName(proto.name()) == nullptr) {
        ASSERT_NE(pool_.BuildFile(proto), nullptr) << proto.name();
      }
    }
  }

  std::unique_ptr<testing::Daemon> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  pb::DescriptorPool pool_;
};

TEST_F(ReflectionTest, TheServicesAreListed) {
  EXPECT_THAT(ListServices(), IsSupersetOf({"gemmd.v1.Gemm", "gemmd.v1.Tensors", "gemmd.v1.Sessions", "gemmd.v1.Admin",
                                            "grpc.health.v1.Health"}));
}

TEST_F(ReflectionTest, TheServicesAreDescribedAsTheyAre) {
  for (const pb::Descriptor* message : {v1::RunRequest::descriptor(), v1::CreateTensorRequest::descriptor(),
                                        v1::OpenSessionRequest::descriptor(), v1::GetInfoRequest::descriptor()}) {
    const pb::ServiceDescriptor* service = message->file()->service(0);
    AddFiles(absl::StrCat("file_containing_symbol: '", service->full_name(), "'"));
    const pb::ServiceDescriptor* described = pool_.FindServiceByName(service->full_name());
    ASSERT_NE(described, nullptr) << service->full_name();
    EXPECT_EQ(described->DebugString(), service->DebugString());
    for (int i = 0; i < service->method_count(); ++i) {
      const pb::MethodDescriptor* method = service->method(i);
      EXPECT_EQ(described->method(i)->input_type()->DebugString(), method->input_type()->DebugString());
      EXPECT_EQ(described->method(i)->output_type()->DebugString(), method->output_type()->DebugString());
    }
  }
}

TEST_F(ReflectionTest, AnUnknownServiceIsAnError) {
  const std::unique_ptr<pb::Message> response = Ask("file_containing_symbol: 'gemmd.v1.Nothing'");
  const pb::Message& error = Sub(*response, "error_response");
  const pb::FieldDescriptor* code = error.GetDescriptor()->FindFieldByName("error_code");
  EXPECT_EQ(error.GetReflection()->GetInt32(error, code), static_cast<int>(grpc::StatusCode::NOT_FOUND));
}

}  // namespace
}  // namespace gemmd
