// SPDX-License-Identifier: Apache-2.0
// NVRTC needs neither a driver nor a GPU.
#include "gpu/jit/kernel_source.h"
#include "gpu/jit/nvrtc_compiler.h"

#include "absl/strings/match.h"
#include "gtest/gtest.h"

#include <string>
#include <utility>

namespace gemmd {
namespace {

constexpr KernelSource kSources[] = {
    {"one.cuh", "template <int kValue> __global__ void Store(int* out) { *out = kValue; }"}};
constexpr KernelSource kOthers[] = {
    {"one.cuh", "template <int kValue> __global__ void Store(int* out) { *out = -kValue; }"}};

NvrtcCompiler MakeCompiler(absl::Span<const KernelSource> sources, absl::Span<const absl::string_view> mains,
                           absl::Span<const std::string> macros = {}) {
  absl::StatusOr<NvrtcCompiler> compiler = NvrtcCompiler::Create(sources, mains, macros);
  EXPECT_TRUE(compiler.ok()) << compiler.status();
  return *std::move(compiler);
}

TEST(NvrtcCompilerTest, CompilesANamedInstantiationFromMemory) {
  const NvrtcCompiler compiler = MakeCompiler(kSources, {"one.cuh"});
  const auto kernel = compiler.Compile(compiler.KeyOf("Store<42>"));
  ASSERT_TRUE(kernel.ok()) << kernel.status();
  EXPECT_TRUE(absl::StrContains(kernel->symbol, "Store"));
  EXPECT_EQ(kernel->cubin.substr(1, 3), "ELF");
}

TEST(NvrtcCompilerTest, AnErrorNamesTheKernelAndTheLogHasTheRest) {
  const NvrtcCompiler compiler = MakeCompiler(kSources, {"one.cuh"});
  std::string log;
  const auto kernel = compiler.Compile(compiler.KeyOf("Store<no_such_name>"), &log);
  EXPECT_TRUE(absl::IsInternal(kernel.status()));
  EXPECT_TRUE(absl::StrContains(kernel.status().message(), "no_such_name")) << kernel.status();
  EXPECT_TRUE(absl::StrContains(log, "error"));
}

TEST(NvrtcCompilerTest, KeysDependOnContent) {
  const NvrtcCompiler compiler = MakeCompiler(kSources, {"one.cuh"});
  const NvrtcCompiler same = MakeCompiler(kSources, {"one.cuh"});
  const NvrtcCompiler other = MakeCompiler(kOthers, {"one.cuh"});
  EXPECT_EQ(compiler.KeyOf("Store<1>").digest(), same.KeyOf("Store<1>").digest());
  EXPECT_NE(compiler.KeyOf("Store<1>").digest(), other.KeyOf("Store<1>").digest());
  EXPECT_NE(compiler.KeyOf("Store<1>").digest(), compiler.KeyOf("Store<2>").digest());
}

TEST(NvrtcCompilerTest, AMacroChangesTheCodeAndTheKey) {
  constexpr KernelSource kMacro[] = {
      {"one.cuh", "#ifndef WANTED\n#error not wanted\n#endif\n__global__ void Store(int* out) { *out = 1; }"}};
  const NvrtcCompiler with = MakeCompiler(kMacro, {"one.cuh"}, {"WANTED"});
  const NvrtcCompiler without = MakeCompiler(kMacro, {"one.cuh"});
  EXPECT_TRUE(with.Compile(with.KeyOf("Store")).ok());
  EXPECT_FALSE(without.Compile(without.KeyOf("Store")).ok());
  EXPECT_NE(with.KeyOf("Store").digest(), without.KeyOf("Store").digest());
}

TEST(NvrtcCompilerTest, TheEmbeddedSourcesCompileWithoutFilesOrHeaders) {
  const NvrtcCompiler compiler =
      MakeCompiler(EmbeddedKernelSources(), {"gpu/kernels/gemm.cuh", "gpu/kernels/quantize.cuh"});
  const auto kernel = compiler.Compile(compiler.KeyOf("gemmd::QuantizeRows<float>"));
  EXPECT_TRUE(kernel.ok()) << kernel.status();
}

}  // namespace
}  // namespace gemmd
