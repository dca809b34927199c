# SPDX-License-Identifier: Apache-2.0
# Writes OUTPUT, a C++ file that holds the text of SOURCES (paths from ROOT) for gpu/jit/kernel_source.h.
# Usage: cmake -DROOT=dir -DOUTPUT=file.cc "-DSOURCES=a;b" -P embed.cmake
set(text "// Generated from the kernel sources; see gpu/jit/embed.cmake.\n#include \"gpu/jit/kernel_source.h\"\n\n")
string(APPEND text "namespace gemmd {\nnamespace {\n\nconstexpr KernelSource kSources[] = {\n")
foreach(source IN LISTS SOURCES)
  file(READ "${ROOT}/${source}" content)
  string(APPEND text "    {\"${source}\", R\"kernel(${content})kernel\"},\n")
endforeach()
string(APPEND text "};\n\n}  // namespace\n\n")
string(APPEND text "absl::Span<const KernelSource> EmbeddedKernelSources() { return kSources; }\n\n}  // namespace gemmd\n")
file(WRITE "${OUTPUT}" "${text}")
