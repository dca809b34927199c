// SPDX-License-Identifier: Apache-2.0
// gemmctl put, get, list, rm.
#include "client/gemmctl_commands.h"
#include "client/npy.h"
#include "client/safetensors.h"
#include "client/stored_array.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include <cstdint>

namespace gemmd {
namespace {

using Json = nlohmann::json;

constexpr char kNpySuffix[] = ".npy";
constexpr char kSafetensorsSuffix[] = ".safetensors";

absl::Status UnknownSuffix(const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": expected a file name that ends in .npy or .safetensors"));
}

absl::StatusOr<StoredArray> ReadArray(const CommandOptions& options, const std::string& path) {
  DType dtype = DType::kNone;
  if (!options.dtype.empty()) {
    const absl::StatusOr<DType> parsed = ParseDType(options.dtype);
    if (!parsed.ok()) return parsed.status();
    dtype = *parsed;
  }
  const absl::StatusOr<std::string> file = ReadFile(path);
  if (!file.ok()) return file.status();
  if (absl::EndsWith(path, kNpySuffix)) return ParseNpy(*file, dtype);
  if (absl::EndsWith(path, kSafetensorsSuffix)) return ReadSafetensors(*file, options.tensor);
  return UnknownSuffix(path);
}

// "weights" for "/models/weights.npy".
std::string Stem(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);
  return file.substr(0, file.rfind('.'));
}

// By id if the text is a number, otherwise by name.
absl::StatusOr<v1::Tensor> Find(Client* client, const std::string& name_or_id) {
  uint64_t id = 0;
  return absl::SimpleAtoi(name_or_id, &id) ? client->GetTensor(id) : client->GetTensor(name_or_id);
}

Json ToJson(const v1::Tensor& tensor) {
  return {{"id", tensor.id()},
          {"name", tensor.name()},
          {"shared", tensor.shared()},
          {"dtype", Name(FromProto(tensor.dtype())).data()},
          {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())},
          {"byte_size", tensor.byte_size()},
          {"bytes_written", tensor.bytes_written()},
          {"references", tensor.references()},
          {"device", tensor.device()},
          {"sf_id", tensor.sf_id()},
          {"read_only", tensor.read_only()}};
}

void PrintTensors(const CommandOptions& options, const Json& json, const std::vector<v1::Tensor>& tensors) {
  TextTable table({"id", "name", "dtype", "shape", "bytes", "references", "device"});
  for (const v1::Tensor& tensor : tensors) {
    table.Add({absl::StrCat(tensor.id()), tensor.name().empty() ? "-" : tensor.name(),
               std::string(Name(FromProto(tensor.dtype()))), absl::StrJoin(tensor.shape(), "x"),
               BytesText(tensor.byte_size()), absl::StrCat(tensor.references()), tensor.device()});
  }
  Print(options, json, table.ToString());
}

absl::StatusOr<QuantizeBlock> ParseQuantize(const std::string& text) {
  if (text.empty()) return QuantizeBlock::kUnset;
  if (text == "1x128") return QuantizeBlock::k1x128;
  if (text == "128x128") return QuantizeBlock::k128x128;
  return absl::InvalidArgumentError(absl::StrCat("--quantize: expected 1x128 or 128x128, got \"", text, "\""));
}

// A tensor with the bytes of the array; none is left behind after an error.
absl::StatusOr<v1::Tensor> Upload(Client* client, const TensorSpec& spec, const StoredArray& array) {
  const absl::StatusOr<v1::Tensor> created = client->CreateTensor(spec);
  if (!created.ok()) return created.status();
  const absl::Status written =
      client->WriteTensor(created->id(), Inline<char>(array.bytes, array.dtype, array.shape).bytes);
  if (!written.ok()) {
    client->DeleteTensor(created->id()).IgnoreError();  // Half a tensor is of no use; the first error is told.
    return written;
  }
  return client->GetTensor(created->id());
}

}  // namespace

absl::Status RunPut(const CommandOptions& options) {
  TensorContent content;
  content.transpose = options.transpose;
  const absl::StatusOr<QuantizeBlock> quantize = ParseQuantize(options.quantize);
  if (!quantize.ok()) return quantize.status();
  content.quantize = *quantize;
  if (options.server_file && !options.dtype.empty()) {
    return absl::InvalidArgumentError("--dtype: expected none with --server_file, which says itself what it holds");
  }
  const std::string& path = options.arguments[0];
  absl::StatusOr<StoredArray> array = StoredArray();
  if (!options.server_file) array = ReadArray(options, path);
  if (!array.ok()) return array.status();
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, options.connect);
  if (!client.ok()) return client.status();
  // Shared, or else it would go with this program's session.
  TensorSpec spec{.name = options.name.empty() ? Stem(path) : options.name, .shared = true};
  absl::StatusOr<v1::Tensor> tensor = absl::UnknownError("");
  if (options.server_file) {
    content.file = path;
    content.file_tensor = options.tensor;
    tensor = (*client)->CreateTensor(spec, content);
  } else if (content.transpose || content.quantize != QuantizeBlock::kUnset) {
    // Where it is changed, it is a private tensor first, which goes with the session.
    const absl::StatusOr<v1::Tensor> raw = Upload(client->get(), {array->dtype, array->shape}, *array);
    if (!raw.ok()) return raw.status();
    content.data = Resident(raw->id());
    tensor = (*client)->CreateTensor(spec, content);
  } else {
    spec.dtype = array->dtype;
    spec.shape = array->shape;
    tensor = Upload(client->get(), spec, *array);
  }
  if (!tensor.ok()) return tensor.status();
  std::vector<v1::Tensor> made = {*tensor};
  if (tensor->sf_id() != 0) {
    const absl::StatusOr<v1::Tensor> scales = (*client)->GetTensor(tensor->sf_id());
    if (!scales.ok()) return scales.status();
    made.push_back(*scales);
  }
  PrintTensors(options, ToJson(*tensor), made);
  return absl::OkStatus();
}

absl::Status RunGet(const CommandOptions& options) {
  const std::string& path = options.arguments[1];
  const bool npy = absl::EndsWith(path, kNpySuffix);
  if (!npy && !absl::EndsWith(path, kSafetensorsSuffix)) return UnknownSuffix(path);
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, options.connect);
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::Tensor> tensor = Find(client->get(), options.arguments[0]);
  if (!tensor.ok()) return tensor.status();
  absl::StatusOr<std::string> bytes = (*client)->ReadTensor(tensor->id());
  if (!bytes.ok()) return bytes.status();
  const StoredArray array{
      FromProto(tensor->dtype()), {tensor->shape().begin(), tensor->shape().end()}, *std::move(bytes)};
  const std::string name = tensor->name().empty() ? Stem(path) : tensor->name();
  const absl::Status written = WriteFile(path, npy ? FormatNpy(array) : FormatSafetensors({{name, array}}));
  if (!written.ok()) return written;
  PrintTensors(options, ToJson(*tensor), {*tensor});
  return absl::OkStatus();
}

absl::Status RunList(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, options.connect);
  if (!client.ok()) return client.status();
  const absl::StatusOr<std::vector<v1::Tensor>> tensors = (*client)->ListTensors();
  if (!tensors.ok()) return tensors.status();
  Json json = {{"tensors", Json::array()}};
  for (const v1::Tensor& tensor : *tensors) json["tensors"].push_back(ToJson(tensor));
  PrintTensors(options, json, *tensors);
  return absl::OkStatus();
}

absl::Status RunRemove(const CommandOptions& options) {
  const absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options.server, options.connect);
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::Tensor> tensor = Find(client->get(), options.arguments[0]);
  if (!tensor.ok()) return tensor.status();
  const absl::Status status = (*client)->DeleteTensor(tensor->id());
  if (!status.ok()) return status;
  Print(options, {{"removed", tensor->id()}}, absl::StrCat("removed ", tensor->id(), "\n"));
  return absl::OkStatus();
}

}  // namespace gemmd
