// SPDX-License-Identifier: Apache-2.0
// WGMMA, the warpgroup matrix product: 128 threads multiply 64 rows of X by N rows of Y, both K-major tiles in shared
// memory, and keep the 64 x N sums in registers. One PTX instruction per function; the instruction runs asynchronously
// between WgmmaFence .. WgmmaCommit and WgmmaWait, and its registers must not be touched in between.
//
// Where the sums lie: thread t of the warpgroup (w = t / 32, l = t % 32) holds for octet j of columns
//   sums[4j + 0], sums[4j + 1]: row 16w + l / 4,     columns 8j + 2 (l % 4) and the next
//   sums[4j + 2], sums[4j + 3]: row 16w + l / 4 + 8, the same columns.
#pragma once

#include "gpu/kernels/pipeline.cuh"

namespace gemmd {

// Where a tile starts, as descriptors count it: 14 bits of address in units of 16 bytes. All shared memory fits, so
// distances in this unit may be added.
__device__ __forceinline__ uint32 TileAddress(uint32 shared) { return (shared & 0x3ffff) >> 4 | 1u << 16; }
inline constexpr uint32 kTileUnit = 16;

// Describes a tile with rows of 128 bytes in the 128-byte swizzle that TMA writes: 8-row groups 1024 bytes apart, swizzle
// mode 1. It starts on 1024 bytes, or 32 bytes further along K for each step.
__device__ __forceinline__ uint64 TileDescriptor(uint32 tile_address) {
  constexpr uint64 kGroupStride = 1024 >> 4;
  constexpr uint64 kSwizzle128 = 1;
  return tile_address | kGroupStride << 32 | kSwizzle128 << 62;
}

// Orders earlier writes to the sums' registers before the products that follow.
__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending committed groups are still running.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Emits nothing; tells the compiler that the registers change here, so that it moves no use of them across a wait.
template <int kCount>
__device__ __forceinline__ void PinRegisters(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// sums = x * y^T + (accumulate ? sums : 0) over 32 bytes of K: 32 e4m3 or 16 bfloat16 elements.
template <int kColumns>
struct Wgmma;

// The register operands of each width, as text and as constraints; they grow by eight.
#define GEMMD_R4 "%0, %1, %2, %3"
#define GEMMD_R8 GEMMD_R4 ", %4, %5, %6, %7"
#define GEMMD_R16 GEMMD_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GEMMD_R24 GEMMD_R16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define GEMMD_R32 GEMMD_R24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define GEMMD_R40 GEMMD_R32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define GEMMD_R48 GEMMD_R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define GEMMD_R56 GEMMD_R48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define GEMMD_R64 GEMMD_R56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define GEMMD_R72 GEMMD_R64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define GEMMD_R80 GEMMD_R72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define GEMMD_R88 GEMMD_R80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define GEMMD_R96 GEMMD_R88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define GEMMD_R104 GEMMD_R96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define GEMMD_R112 GEMMD_R104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define GEMMD_R120 GEMMD_R112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define GEMMD_R128 GEMMD_R120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define GEMMD_S4 "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
#define GEMMD_S8 GEMMD_S4, "+f"(s[4]), "+f"(s[5]), "+f"(s[6]), "+f"(s[7])
#define GEMMD_S16 GEMMD_S8, "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),  \
  "+f"(s[14]), "+f"(s[15])
#define GEMMD_S24 GEMMD_S16, "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), "+f"(s[21]),  \
  "+f"(s[22]), "+f"(s[23])
#define GEMMD_S32 GEMMD_S24, "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), "+f"(s[28]), "+f"(s[29]),  \
  "+f"(s[30]), "+f"(s[31])
#define GEMMD_S40 GEMMD_S32, "+f"(s[32]), "+f"(s[33]), "+f"(s[34]), "+f"(s[35]), "+f"(s[36]), "+f"(s[37]),  \
  "+f"(s[38]), "+f"(s[39])
#define GEMMD_S48 GEMMD_S40, "+f"(s[40]), "+f"(s[41]), "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]),  \
  "+f"(s[46]), "+f"(s[47])
#define GEMMD_S56 GEMMD_S48, "+f"(s[48]), "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]),  \
  "+f"(s[54]), "+f"(s[55])
#define GEMMD_S64 GEMMD_S56, "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]),  \
  "+f"(s[62]), "+f"(s[63])
#define GEMMD_S72 GEMMD_S64, "+f"(s[64]), "+f"(s[65]), "+f"(s[66]), "+f"(s[67]), "+f"(s[68]), "+f"(s[69]),  \
  "+f"(s[70]), "+f"(s[71])
#define GEMMD_S80 GEMMD_S72, "+f"(s[72]), "+f"(s[73]), "+f"(s[74]), "+f"(s[75]), "+f"(s[76]), "+f"(s[77]),  \
  "+f"(s[78]), "+f"(s[79])
#define GEMMD_S88 GEMMD_S80, "+f"(s[80]), "+f"(s[81]), "+f"(s[82]), "+f"(s[83]), "+f"(s[84]), "+f"(s[85]),  \
  "+f"(s[86]), "+f"(s[87])
#define GEMMD_S96 GEMMD_S88, "+f"(s[88]), "+f"(s[89]), "+f"(s[90]), "+f"(s[91]), "+f"(s[92]), "+f"(s[93]),  \
  "+f"(s[94]), "+f"(s[95])
#define GEMMD_S104 GEMMD_S96, "+f"(s[96]), "+f"(s[97]), "+f"(s[98]), "+f"(s[99]), "+f"(s[100]),  \
  "+f"(s[101]), "+f"(s[102]), "+f"(s[103])
#define GEMMD_S112 GEMMD_S104, "+f"(s[104]), "+f"(s[105]), "+f"(s[106]), "+f"(s[107]), "+f"(s[108]),  \
  "+f"(s[109]), "+f"(s[110]), "+f"(s[111])
#define GEMMD_S120 GEMMD_S112, "+f"(s[112]), "+f"(s[113]), "+f"(s[114]), "+f"(s[115]), "+f"(s[116]),  \
  "+f"(s[117]), "+f"(s[118]), "+f"(s[119])
#define GEMMD_S128 GEMMD_S120, "+f"(s[120]), "+f"(s[121]), "+f"(s[122]), "+f"(s[123]), "+f"(s[124]),  \
  "+f"(s[125]), "+f"(s[126]), "+f"(s[127])

// Operands after the sums: x, y (descriptors) and the predicate `accumulate`.
#define GEMMD_WGMMA(COLUMNS, SUMS, X, Y, ACCUMULATE, REGISTERS, CONSTRAINTS)                                        \
  template <>                                                                                                       \
  struct Wgmma<COLUMNS> {                                                                                           \
    static __device__ __forceinline__ void E4m3(float (&s)[SUMS], uint64 x, uint64 y, int accumulate) {             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE ", 0;\n"                                          \
                   "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k32.f32.e4m3.e4m3 {" REGISTERS "}, " X ", " Y      \
                   ", p, 1, 1;\n}"                                                                                  \
                   : CONSTRAINTS                                                                                    \
                   : "l"(x), "l"(y), "r"(accumulate));                                                              \
    }                                                                                                               \
    static __device__ __forceinline__ void Bf16(float (&s)[SUMS], uint64 x, uint64 y, int accumulate) {             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE ", 0;\n"                                          \
                   "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.bf16.bf16 {" REGISTERS "}, " X ", " Y      \
                   ", p, 1, 1, 0, 0;\n}"                                                                            \
                   : CONSTRAINTS                                                                                    \
                   : "l"(x), "l"(y), "r"(accumulate));                                                              \
    }                                                                                                               \
  };

GEMMD_WGMMA(8, 4, "%4", "%5", "%6", GEMMD_R4, GEMMD_S4)
GEMMD_WGMMA(16, 8, "%8", "%9", "%10", GEMMD_R8, GEMMD_S8)
GEMMD_WGMMA(32, 16, "%16", "%17", "%18", GEMMD_R16, GEMMD_S16)
GEMMD_WGMMA(48, 24, "%24", "%25", "%26", GEMMD_R24, GEMMD_S24)
GEMMD_WGMMA(64, 32, "%32", "%33", "%34", GEMMD_R32, GEMMD_S32)
GEMMD_WGMMA(80, 40, "%40", "%41", "%42", GEMMD_R40, GEMMD_S40)
GEMMD_WGMMA(96, 48, "%48", "%49", "%50", GEMMD_R48, GEMMD_S48)
GEMMD_WGMMA(112, 56, "%56", "%57", "%58", GEMMD_R56, GEMMD_S56)
GEMMD_WGMMA(128, 64, "%64", "%65", "%66", GEMMD_R64, GEMMD_S64)
GEMMD_WGMMA(144, 72, "%72", "%73", "%74", GEMMD_R72, GEMMD_S72)
GEMMD_WGMMA(160, 80, "%80", "%81", "%82", GEMMD_R80, GEMMD_S80)
GEMMD_WGMMA(176, 88, "%88", "%89", "%90", GEMMD_R88, GEMMD_S88)
GEMMD_WGMMA(192, 96, "%96", "%97", "%98", GEMMD_R96, GEMMD_S96)
GEMMD_WGMMA(208, 104, "%104", "%105", "%106", GEMMD_R104, GEMMD_S104)
GEMMD_WGMMA(224, 112, "%112", "%113", "%114", GEMMD_R112, GEMMD_S112)
GEMMD_WGMMA(240, 120, "%120", "%121", "%122", GEMMD_R120, GEMMD_S120)
GEMMD_WGMMA(256, 128, "%128", "%129", "%130", GEMMD_R128, GEMMD_S128)

#undef GEMMD_WGMMA

}  // namespace gemmd
