// SPDX-License-Identifier: Apache-2.0
// compile_kernels [--every=N] [--plain-scales]: compiles each (or each N-th) configuration that selection can give with
// NVRTC, without a GPU, and fails if one does not compile, spills registers, has its WGMMA serialized by the assembler,
// or must run beside GEMMs and has more registers than those leave.
// --plain-scales: the variant for racecheck (gpu_check), which may spill.
#include "gpu/cuda/gemm_config.h"
#include "gpu/jit/kernel_source.h"
#include "gpu/jit/nvrtc_compiler.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace gemmd {
namespace {

// Kernels that must find room beside a GEMM of 384 threads with 168 registers each: one warp of 32.
constexpr const char* kBesideGemm[] = {"gemmd::ClampRows<int>", "gemmd::CopyWords<unsigned int>"};
constexpr int kRegistersBesideGemm = 32;

// The registers of a kernel by the assembler's report; -1 if it does not say.
int RegistersOf(absl::string_view log) {
  for (const absl::string_view line : absl::StrSplit(log, '\n')) {
    constexpr absl::string_view kUsed = "Used ";
    const size_t at = line.find(kUsed);
    if (at == absl::string_view::npos || !absl::StrContains(line, " registers")) continue;
    return std::atoi(std::string(line.substr(at + kUsed.size())).c_str());
  }
  return -1;
}

// The first line of the assembler's report that must not be there; empty if all is well.
std::string Complaint(absl::string_view expression, const std::string& log, bool may_spill) {
  if (!absl::StrContains(log, "spill stores")) return "the assembler's report says nothing about spills";
  const int registers = RegistersOf(log);
  if (registers <= 0) return "the assembler's report says nothing about registers";
  const bool beside_gemm = std::count(std::begin(kBesideGemm), std::end(kBesideGemm), expression) > 0;
  if (beside_gemm && registers > kRegistersBesideGemm) return absl::StrCat("uses ", registers, " registers");
  for (const absl::string_view line : absl::StrSplit(log, '\n')) {
    const bool spills =
        !may_spill && absl::StrContains(line, "spill stores") && !absl::StrContains(line, " 0 bytes spill stores");
    // C7508: setmaxnreg ignored. C7510 and its kind: WGMMA serialized.
    if (spills || absl::StrContains(line, "C75") || absl::StrContains(line, "serializ")) return std::string(line);
  }
  return {};
}

int CompileAll(size_t every, const std::vector<std::string>& macros) {
  std::vector<std::string> expressions;
  const std::vector<GemmTraits> traits = SelectableTraits();
  for (size_t i = 0; i < traits.size(); i += every) expressions.push_back(ExpressionOf(traits[i]));
  for (const char* x : {"float", "gemmd::Bf16"}) {
    expressions.push_back(absl::StrCat("gemmd::QuantizeRows<", x, ">"));
    expressions.push_back(absl::StrCat("gemmd::QuantizeBlocks<", x, ">"));
  }
  for (const char* x : {"uint4", "unsigned int", "unsigned char"}) {
    expressions.push_back(absl::StrCat("gemmd::MoveRows<", x, ">"));
  }
  expressions.insert(expressions.end(), std::begin(kBesideGemm), std::end(kBesideGemm));
  const absl::StatusOr<NvrtcCompiler> created = NvrtcCompiler::Create(
      EmbeddedKernelSources(), {"gpu/kernels/gemm.cuh", "gpu/kernels/quantize.cuh", "gpu/kernels/rows.cuh"}, macros);
  if (!created.ok()) {
    std::printf("%s\n", std::string(created.status().message()).c_str());
    return 1;
  }
  const NvrtcCompiler& compiler = *created;
  std::atomic<size_t> next = 0;
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(std::thread::hardware_concurrency(), 1u); ++t) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < expressions.size(); i = next++) {
        std::string log;
        const auto kernel = compiler.Compile(compiler.KeyOf(expressions[i]), &log);
        const std::string complaint =
            kernel.ok() ? Complaint(expressions[i], log, !macros.empty()) : std::string(kernel.status().message());
        if (complaint.empty()) continue;
        ++failures;
        std::printf("%s: %s\n", expressions[i].c_str(), complaint.c_str());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%zu kernels compiled, %d with complaints\n", expressions.size(), failures.load());
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace gemmd

int main(int argc, char** argv) {
  size_t every = 1;
  std::vector<std::string> macros;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--plain-scales") macros.emplace_back("GEMMD_PLAIN_SCALES");
    if (absl::StartsWith(argument, "--every=")) every = std::strtoull(argument.c_str() + 8, nullptr, 10);
  }
  return gemmd::CompileAll(std::max<size_t>(every, 1), macros);
}
