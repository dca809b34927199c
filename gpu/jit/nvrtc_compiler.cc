// SPDX-License-Identifier: Apache-2.0
#include "gpu/jit/nvrtc_compiler.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include <memory>
#include <utility>

namespace gemmd {
namespace {

constexpr char kArch[] = "sm_90a";  // "a": WGMMA and setmaxnreg exist only in the architecture-specific target.

// Options that change code. register-usage-level 10 lets the assembler use every register that the launch bounds allow.
constexpr const char* kCodeOptions[] = {"--std=c++20", "-default-device", "--ptxas-options=--register-usage-level=10"};
constexpr char kReportOption[] = "--ptxas-options=-v";

struct DestroyProgram {
  const Nvrtc* nvrtc;
  void operator()(nvrtcProgram program) const { nvrtc->destroy_program(&program); }
};
using Program = std::unique_ptr<std::remove_pointer_t<nvrtcProgram>, DestroyProgram>;

absl::Status NvrtcStatus(const Nvrtc& nvrtc, nvrtcResult result, absl::string_view what) {
  if (result == NVRTC_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", nvrtc.get_error_string(result)));
}

std::string CompilerName(const Nvrtc& nvrtc) {
  int major = 0;
  int minor = 0;
  nvrtc.version(&major, &minor);
  std::string name = absl::StrCat("NVRTC ", major, ".", minor);
  for (const char* option : kCodeOptions) absl::StrAppend(&name, " ", option);
  return name;
}

std::string LogOf(const Nvrtc& nvrtc, nvrtcProgram program) {
  size_t size = 0;
  if (nvrtc.get_program_log_size(program, &size) != NVRTC_SUCCESS || size < 2) return {};
  std::string log(size, '\0');
  nvrtc.get_program_log(program, log.data());
  log.resize(size - 1);
  return log;
}

// The line that people look for first.
std::string FirstError(const std::string& log) {
  for (const absl::string_view line : absl::StrSplit(log, '\n')) {
    if (absl::StrContains(line, "error")) return std::string(line);
  }
  return "no error line in the log";
}

absl::StatusOr<Program> CreateProgram(const Nvrtc& nvrtc, const std::string& text,
                                      absl::Span<const KernelSource> sources) {
  std::vector<const char*> names;
  std::vector<const char*> texts;
  for (const KernelSource& source : sources) {
    names.push_back(source.name);
    texts.push_back(source.text);
  }
  nvrtcProgram program = nullptr;
  const nvrtcResult result = nvrtc.create_program(&program, text.c_str(), "gemmd_kernels.cu",
                                                  static_cast<int>(names.size()), texts.data(), names.data());
  if (absl::Status status = NvrtcStatus(nvrtc, result, "nvrtcCreateProgram"); !status.ok()) return status;
  return Program(program, DestroyProgram{&nvrtc});
}

}  // namespace

absl::StatusOr<NvrtcCompiler> NvrtcCompiler::Create(absl::Span<const KernelSource> sources,
                                                    absl::Span<const absl::string_view> main_sources,
                                                    absl::Span<const std::string> macros) {
  const absl::StatusOr<const Nvrtc*> nvrtc = Nvrtc::Load();
  if (!nvrtc.ok()) return nvrtc.status();
  return NvrtcCompiler(**nvrtc, sources, main_sources, macros);
}

NvrtcCompiler::NvrtcCompiler(const Nvrtc& nvrtc, absl::Span<const KernelSource> sources,
                             absl::Span<const absl::string_view> main_sources, absl::Span<const std::string> macros)
    : nvrtc_(&nvrtc), sources_(sources), compiler_(CompilerName(nvrtc)) {
  for (const std::string& macro : macros) absl::StrAppend(&program_, "#define ", macro, "\n");
  for (const absl::string_view name : main_sources) absl::StrAppend(&program_, "#include \"", name, "\"\n");
  std::string all = program_;
  for (const KernelSource& source : sources) absl::StrAppend(&all, source.name, "\n", source.text, "\n");
  digest_ = DigestOf(all);
}

KernelKey NvrtcCompiler::KeyOf(absl::string_view expression) const {
  return {std::string(expression), kArch, compiler_, digest_};
}

absl::StatusOr<CompiledKernel> NvrtcCompiler::Compile(const KernelKey& key, std::string* log) const {
  absl::StatusOr<Program> program = CreateProgram(*nvrtc_, program_, sources_);
  if (!program.ok()) return program.status();
  if (absl::Status status =
          NvrtcStatus(*nvrtc_, nvrtc_->add_name_expression(program->get(), key.expression.c_str()), key.expression);
      !status.ok()) {
    return status;
  }
  const std::string arch = absl::StrCat("--gpu-architecture=", key.arch);
  std::vector<const char*> options(std::begin(kCodeOptions), std::end(kCodeOptions));
  options.push_back(arch.c_str());
  options.push_back(kReportOption);
  const nvrtcResult result = nvrtc_->compile_program(program->get(), static_cast<int>(options.size()), options.data());
  const std::string text = LogOf(*nvrtc_, program->get());
  if (log != nullptr) *log = text;
  if (result != NVRTC_SUCCESS) {
    return absl::InternalError(absl::StrCat("compiling ", key.expression, ": ", FirstError(text)));
  }

  CompiledKernel kernel;
  const char* symbol = nullptr;
  if (absl::Status status = NvrtcStatus(
          *nvrtc_, nvrtc_->get_lowered_name(program->get(), key.expression.c_str(), &symbol), "nvrtcGetLoweredName");
      !status.ok()) {
    return status;
  }
  kernel.symbol = symbol;
  size_t size = 0;
  if (absl::Status status = NvrtcStatus(*nvrtc_, nvrtc_->get_cubin_size(program->get(), &size), "nvrtcGetCUBINSize");
      !status.ok()) {
    return status;
  }
  kernel.cubin.resize(size);
  if (absl::Status status =
          NvrtcStatus(*nvrtc_, nvrtc_->get_cubin(program->get(), kernel.cubin.data()), "nvrtcGetCUBIN");
      !status.ok()) {
    return status;
  }
  return kernel;
}

}  // namespace gemmd
