// SPDX-License-Identifier: Apache-2.0
#include "proto/warm_up_manifest.h"

#include "absl/strings/str_cat.h"
#include <google/protobuf/descriptor.h>
#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>

namespace gemmd {
namespace {

using Json = nlohmann::json;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;

// Of what somebody wrote, in a message.
constexpr size_t kMaxQuotedBytes = 40;

absl::Status Bad(absl::string_view where, absl::string_view expected, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": expected ", expected, ", got ", got));
}

std::string Quote(const Json& value) {
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kMaxQuotedBytes ? text : absl::StrCat(text.substr(0, kMaxQuotedBytes), "...");
}

// "OP_UNSPECIFIED" and its like say nothing and are not offered.
std::string NamesOf(const EnumDescriptor* type) {
  std::string names;
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->number() != 0) absl::StrAppend(&names, names.empty() ? "" : ", ", type->value(i)->name());
  }
  return names;
}

std::string NamesOf(const google::protobuf::Descriptor* type) {
  std::string names;
  for (int i = 0; i < type->field_count(); ++i) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", type->field(i)->name());
  }
  return names;
}

absl::Status SetField(const std::string& where, const FieldDescriptor* field, const Json& value,
                      v1::WarmUpShape* shape) {
  if (field->enum_type() != nullptr) {
    const EnumValueDescriptor* named =
        value.is_string() ? field->enum_type()->FindValueByName(value.get<std::string>()) : nullptr;
    if (named == nullptr || named->number() == 0) {
      return Bad(where, absl::StrCat("one of ", NamesOf(field->enum_type())), Quote(value));
    }
    v1::WarmUpShape::GetReflection()->SetEnum(shape, field, named);
    return absl::OkStatus();
  }
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
    if (!value.is_boolean()) return Bad(where, "true or false", Quote(value));
    v1::WarmUpShape::GetReflection()->SetBool(shape, field, value.get<bool>());
    return absl::OkStatus();
  }
  constexpr auto kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value.is_number_unsigned() || value.get<uint64_t>() > kLargest) {
    return Bad(where, "an integer of at least 0", Quote(value));
  }
  v1::WarmUpShape::GetReflection()->SetInt64(shape, field, value.get<int64_t>());
  return absl::OkStatus();
}

absl::Status ParseShape(const std::string& where, const Json& object, v1::WarmUpShape* shape) {
  const auto* type = v1::WarmUpShape::descriptor();
  if (!object.is_object()) return Bad(where, "an object", Quote(object));
  for (const auto& [name, value] : object.items()) {
    const FieldDescriptor* field = type->FindFieldByName(name);
    if (field == nullptr) return Bad(where, absl::StrCat("the fields ", NamesOf(type)), Quote(name));
    if (absl::Status status = SetField(absl::StrCat(where, ".", name), field, value, shape); !status.ok()) {
      return status;
    }
  }
  for (const char* required : {"op", "scaling", "d_dtype", "n", "k"}) {
    if (!object.contains(required)) return Bad(absl::StrCat(where, ".", required), "a value", "none");
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseJson(absl::string_view text) {
  // The library says where an error is by exceptions only; they end here.
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...".
    const std::string what = error.what();
    const size_t bracket = what.find("] ");
    return absl::InvalidArgumentError(bracket == std::string::npos ? what : what.substr(bracket + 2));
  }
}

}  // namespace

absl::StatusOr<v1::WarmUpRequest> ParseWarmUpManifest(absl::string_view text) {
  const absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok()) return json.status();
  if (!json->is_object() || json->size() != 1 || !json->contains("shapes") || !(*json)["shapes"].is_array()) {
    return Bad("manifest", R"({"shapes": [...]})", Quote(*json));
  }
  const Json& shapes = (*json)["shapes"];
  v1::WarmUpRequest request;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const absl::Status status = ParseShape(absl::StrCat("shapes[", i, "]"), shapes[i], request.add_shapes());
    if (!status.ok()) return status;
  }
  if (shapes.empty()) return Bad("shapes", "at least one", "none");
  return request;
}

absl::StatusOr<v1::WarmUpRequest> ReadWarmUpManifest(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream.is_open() || stream.bad()) return Bad(path, "a readable file", std::strerror(errno));
  absl::StatusOr<v1::WarmUpRequest> request = ParseWarmUpManifest(text);
  if (!request.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", request.status().message()));
  return request;
}

}  // namespace gemmd
