// SPDX-License-Identifier: Apache-2.0
// Resident tensors made from files, regions and other tensors: transposed and quantized once, by a real worker, and
// then used as weights; and those of the manifest, which are there before the daemon is ready.
#include "client/client.h"
#include "client/random_data.h"
#include "client/reference.h"
#include "client/safetensors.h"
#include "tests/e2e/process.h"

#include "absl/strings/str_cat.h"
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace gemmd {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr int64_t kN = 200, kK = 272;

// Random [groups,] rows, columns.
StoredArray Random(DType dtype, int64_t groups, int64_t rows, int64_t columns, uint64_t seed) {
  StoredArray array{dtype, {rows, columns}, {}};
  if (groups > 0) array.shape.insert(array.shape.begin(), groups);
  const auto count = static_cast<size_t>(std::max<int64_t>(groups, 1) * rows * columns);
  array.bytes.resize(count * static_cast<size_t>(ByteSize(dtype)));
  const auto all_rows = static_cast<int64_t>(count) / columns;
  if (dtype == DType::kBf16) {
    FillRandom(seed, all_rows, columns, absl::MakeSpan(reinterpret_cast<uint16_t*>(array.bytes.data()), count));
  } else {
    FillRandom(seed, all_rows, columns, absl::MakeSpan(reinterpret_cast<float*>(array.bytes.data()), count));
  }
  return array;
}

// One matrix of the array as it is, or as its transpose.
reference::Matrix Group(const StoredArray& array, int64_t group, bool transposed) {
  const int64_t rows = array.shape[array.shape.size() - 2];
  const int64_t columns = array.shape.back();
  const char* data = array.bytes.data() + group * rows * columns * ByteSize(array.dtype);
  if (transposed) return reference::ColumnMajor(data, array.dtype, columns, rows, columns);
  return reference::RowMajor(data, array.dtype, rows, columns);
}

class TensorContentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto daemon = testing::Daemon::Start({.flags = {"--tensor_dirs=" + folder_.path()}});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    auto client = Client::Connect(daemon_->address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  void Write(const std::string& name, const std::vector<std::pair<std::string, StoredArray>>& tensors) {
    ASSERT_TRUE(WriteFile(folder_.path() + "/" + name, FormatSafetensors(tensors)).ok());
  }

  // The quantized tensor `made` against what the rule gives for the content.
  void ExpectQuantized(const v1::Tensor& made, const StoredArray& content, bool transposed, QuantizeBlock block) {
    const auto q = client_->ReadTensor(made.id());
    const auto sf = client_->ReadTensor(made.sf_id());
    ASSERT_TRUE(q.ok() && sf.ok()) << q.status() << sf.status();
    const int64_t groups = content.shape.size() == 3 ? content.shape[0] : 1;
    const auto q_size = static_cast<int64_t>(q->size()) / groups;
    const auto sf_size = static_cast<int64_t>(sf->size()) / groups;
    for (int64_t group = 0; group < groups; ++group) {
      const reference::Matrix x = Group(content, group, transposed);
      const int64_t sf_rows = block == QuantizeBlock::k1x128 ? x.rows : (x.rows + 127) / 128;
      const int64_t sf_columns = (x.columns + 127) / 128;
      ASSERT_EQ(q_size, x.rows * x.columns);
      ASSERT_EQ(sf_size, sf_rows * sf_columns * 4);
      const absl::Status status = reference::CheckQuantized(
          x, block, reference::RowMajor(q->data() + group * q_size, DType::kE4m3, x.rows, x.columns),
          reference::RowMajor(sf->data() + group * sf_size, DType::kF32, sf_rows, sf_columns));
      EXPECT_TRUE(status.ok()) << status;
    }
  }

  testing::ProgramResult Gemmctl(const std::vector<std::string>& words) const {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmctl", "--server=" + daemon_->address()};
    arguments.insert(arguments.end(), words.begin(), words.end());
    const auto result = testing::RunProgram(arguments, kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : testing::ProgramResult();
  }

  const testing::TemporaryDirectory folder_;
  std::unique_ptr<testing::Daemon> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_F(TensorContentTest, FilesAreTransposedAndQuantized) {
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    for (const int64_t groups : {0, 3}) {
      const StoredArray nk = Random(dtype, groups, kN, kK, 1);
      const StoredArray kn = Random(dtype, groups, kK, kN, 2);
      Write("w.safetensors", {{"nk", nk}, {"kn", kn}});
      for (const QuantizeBlock block : {QuantizeBlock::k1x128, QuantizeBlock::k128x128}) {
        for (const bool transpose : {false, true}) {
          const auto made = client_->CreateTensor({}, {.file = "w.safetensors",
                                                       .file_tensor = transpose ? "kn" : "nk",
                                                       .transpose = transpose,
                                                       .quantize = block});
          ASSERT_TRUE(made.ok()) << made.status();
          EXPECT_EQ(made->shape(made->shape_size() - 2), kN);
          ExpectQuantized(*made, transpose ? kn : nk, transpose, block);
        }
      }
    }
  }
}

TEST_F(TensorContentTest, ManyChunksGiveWhatOneGives) {
  // 8.5 MB: chunks of 512 rows, and the rest.
  const StoredArray content = Random(DType::kBf16, 0, 1296, 3264, 3);
  Write("w.safetensors", {{"w", content}});
  for (const bool transpose : {false, true}) {
    const auto made = client_->CreateTensor(
        {}, {.file = "w.safetensors", .transpose = transpose, .quantize = QuantizeBlock::k128x128});
    ASSERT_TRUE(made.ok()) << made.status();
    ExpectQuantized(*made, content, transpose, QuantizeBlock::k128x128);
  }
}

TEST_F(TensorContentTest, RegionsAndTensorsAreContent) {
  const StoredArray content = Random(DType::kF32, 2, 33, 65, 4);
  auto region = client_->CreateHostRegion(content.bytes.size() + 64);
  ASSERT_TRUE(region.ok()) << region.status();
  std::memcpy(region->Elements<char>(64, static_cast<int64_t>(content.bytes.size())).data(), content.bytes.data(),
              content.bytes.size());
  const auto copy = client_->CreateTensor({}, {.data = region->View(64, DType::kF32, {2, 33, 65})});
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE(client_->ReadTensor(copy->id()).value() == content.bytes);
  const auto turned = client_->CreateTensor({}, {.data = Resident(copy->id()), .transpose = true});
  ASSERT_TRUE(turned.ok()) << turned.status();
  EXPECT_EQ(turned->shape(1), 65);
  const auto back = client_->CreateTensor({}, {.data = Resident(turned->id()), .transpose = true});
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(client_->ReadTensor(back->id()).value() == content.bytes);
  const std::string bytes = client_->ReadTensor(turned->id()).value();
  for (int64_t group = 0; group < 2; ++group) {
    const reference::Matrix expected = Group(content, group, true);
    const reference::Matrix got = reference::RowMajor(bytes.data() + group * 33 * 65 * 4, DType::kF32, 65, 33);
    for (int64_t row = 0; row < 65; ++row) {
      for (int64_t column = 0; column < 33; ++column) ASSERT_EQ(got.At(row, column), expected.At(row, column));
    }
  }
}

TEST_F(TensorContentTest, GemmctlPutsFilesOfBothSides) {
  Write("w.safetensors", {{"w", Random(DType::kBf16, 0, kK, kN, 5)}});
  const auto server =
      Gemmctl({"put", "--server_file", "w.safetensors", "--name=a", "--transpose", "--quantize=128x128"});
  EXPECT_EQ(server.exit_status, 0) << server.output;
  EXPECT_THAT(server.output, HasSubstr("200x272"));
  EXPECT_THAT(server.output, HasSubstr("a.sf"));
  const auto local =
      Gemmctl({"put", folder_.path() + "/w.safetensors", "--name=b", "--transpose", "--quantize=128x128"});
  EXPECT_EQ(local.exit_status, 0) << local.output;
  for (const char* suffix : {"", ".sf"}) {
    const auto a = client_->GetTensor(absl::StrCat("a", suffix));
    const auto b = client_->GetTensor(absl::StrCat("b", suffix));
    ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
    EXPECT_TRUE(client_->ReadTensor(a->id()).value() == client_->ReadTensor(b->id()).value());
  }
  EXPECT_EQ(client_->ListTensors()->size(), 4u);  // The one that was uploaded to be changed is gone.
  EXPECT_EQ(Gemmctl({"rm", "a"}).exit_status, 0);
  EXPECT_EQ(client_->ListTensors()->size(), 2u);  // Its scale factors too.
  const auto outside = Gemmctl({"put", "--server_file", "../w.safetensors"});
  EXPECT_EQ(outside.exit_status, 1);
  EXPECT_THAT(outside.output, HasSubstr("NOT_FOUND: file.path: expected a regular file below --tensor_dirs"));
  EXPECT_THAT(Gemmctl({"put", "--server_file", "w.safetensors", "--quantize=2x2"}).output,
              HasSubstr("--quantize: expected 1x128 or 128x128, got \"2x2\""));
}

class TensorManifestTest : public ::testing::Test {
 protected:
  TensorManifestTest() : content_(Random(DType::kBf16, 0, kK, kN, 6)) {
    EXPECT_TRUE(WriteFile(folder_.path() + "/w.safetensors", FormatSafetensors({{"w", content_}})).ok());
  }

  std::vector<std::string> Flags(const std::string& manifest) const {
    EXPECT_TRUE(WriteFile(folder_.path() + "/manifest.json", manifest).ok());
    return {"--tensor_dirs=" + folder_.path(), "--tensor_manifest=" + folder_.path() + "/manifest.json"};
  }

  // What gemmd says that does not start.
  std::string Failure(const std::string& manifest) const {
    std::vector<std::string> arguments = {testing::BinaryDirectory() + "/gemmd", "--metrics_listen=", "--workers=cpu",
                                          "--log_level=off", "--listen=unix:" + folder_.path() + "/g.sock"};
    for (const std::string& flag : Flags(manifest)) arguments.push_back(flag);
    const auto result = testing::RunProgram(arguments, kPatience);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return "";
    EXPECT_EQ(result->exit_status, 1);
    return result->output;
  }

  const testing::TemporaryDirectory folder_;
  const StoredArray content_;
};

TEST_F(TensorManifestTest, ItsTensorsMultiplyWithoutASession) {
  const auto daemon = testing::Daemon::Start({.flags = Flags(R"({"tensors": [
      {"name": "w", "file": {"path": "w.safetensors"}, "transpose": true, "quantize": "BLOCK_128X128"}]})")});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const auto client = Client::Connect((*daemon)->address(), {.open_session = false});
  ASSERT_TRUE(client.ok()) << client.status();
  constexpr int64_t kM = 5;
  const StoredArray a = Random(DType::kBf16, 0, kM, kK, 7);
  const reference::Quantized q_a = reference::Quantize(Group(a, 0, false), QuantizeBlock::k1x128);
  const auto response = (*client)->Dense({.a = Inline<uint8_t>(q_a.q, DType::kE4m3, {kM, kK}),
                                          .sfa = Inline<float>(q_a.sf, DType::kF32, {kM, 3}),
                                          .b = ResidentNamed("w"),
                                          .sfb = ResidentNamed("w.sf"),
                                          .d = InlineResult(DType::kF32)});
  ASSERT_TRUE(response.ok()) << response.status();
  const reference::Quantized q_b = reference::Quantize(Group(content_, 0, true), QuantizeBlock::k128x128);
  ASSERT_EQ(response->d().size(), static_cast<size_t>(kM * kN * 4));
  const reference::Product product{{reference::RowMajor(q_a.q.data(), DType::kE4m3, kM, kK),
                                    reference::RowMajor(q_a.sf.data(), DType::kF32, kM, 3), 1},
                                   {reference::RowMajor(q_b.q.data(), DType::kE4m3, kN, kK),
                                    reference::RowMajor(q_b.sf.data(), DType::kF32, 2, 3), 128},
                                   {},
                                   reference::RowMajor(response->d().data(), DType::kF32, kM, kN)};
  const absl::Status right =
      reference::CheckLimits(reference::CheckProducts({product}), reference::LimitsFor(DType::kF32));
  EXPECT_TRUE(right.ok()) << right;
}

TEST_F(TensorManifestTest, ItsTensorsAreForReadingOnly) {
  const auto daemon = testing::Daemon::Start(
      {.flags = Flags(R"({"tensors": [{"name": "w", "file": {"path": "w.safetensors", "tensor": "w"}}]})")});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const auto client = Client::Connect((*daemon)->address());
  ASSERT_TRUE(client.ok()) << client.status();
  const auto tensor = (*client)->GetTensor("w");
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_TRUE(tensor->read_only());
  EXPECT_TRUE((*client)->ReadTensor(tensor->id()).value() == content_.bytes);
  const std::vector<std::byte> zero(16);
  EXPECT_TRUE(absl::IsPermissionDenied((*client)->WriteTensor(tensor->id(), zero)));
  EXPECT_TRUE(absl::IsPermissionDenied((*client)->DeleteTensor(tensor->id())));
  const std::vector<uint16_t> a(16 * kK), b(kN * kK);
  const auto as_result = (*client)->Dense({.scaling = Scaling::kNone,
                                           .a = Inline<uint16_t>(a, DType::kBf16, {16, kK}),
                                           .b = Inline<uint16_t>(b, DType::kBf16, {kN, kK}),
                                           .d = ResidentNamed("w")});
  EXPECT_EQ(as_result.status(),
            absl::PermissionDeniedError("d: expected a tensor that may be written, got one of the daemon's manifest"));
  EXPECT_TRUE(absl::IsAlreadyExists((*client)->CreateTensor({DType::kU8, {1}, "w", true}).status()));
}

TEST_F(TensorManifestTest, GemmdDoesNotStartWithoutAllOfIt) {
  const std::string path = folder_.path() + "/manifest.json";
  EXPECT_EQ(Failure(R"({"tensors": [{"name": "w", "file": {"path": "w.safetensors"}},
                                    {"name": "v", "file": {"path": "none.safetensors"}}]})"),
            absl::StrCat("gemmd: --tensor_manifest: ", path,
                         ": tensors[1] (v): file.path: expected a regular file below "
                         "--tensor_dirs that gemmd may read, found none\n"));
  EXPECT_EQ(Failure(R"({"tensors": [{"name": "w", "file": {"path": "w.safetensors"}, "dtype": "F32"}]})"),
            absl::StrCat("gemmd: --tensor_manifest: ", path,
                         ": tensors[0] (w): dtype: expected bf16 of this content, got f32\n"));
  EXPECT_THAT(Failure(R"({"tensors": [{"name": "w", "file": {"path": "w.safetensors", "tensor": "x"}}]})"),
              HasSubstr("tensors[0] (w): file.tensor: safetensors: no tensor \"x\""));
  EXPECT_THAT(Failure("{"), HasSubstr(absl::StrCat("--tensor_manifest: ", path, ": ")));
}

}  // namespace
}  // namespace gemmd
