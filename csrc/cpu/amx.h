#pragma once

#include <immintrin.h>

#include <cstdint>

// AMX, one function per instruction. The eight tile registers hold 16 rows of 64 bytes here,
// always: 16 x 16 floats of a sum C, or 16 x 32 halves of an operand. A product adds A B to C,
//
//   C[m][n] += sum_k A[m][2k] * B[k][2n] + A[m][2k + 1] * B[k][2n + 1]
//
// so that a row of A is a row of its matrix, and a row of B holds two rows of its matrix, zipped.
//
// Statements of assembly, not the compiler's intrinsics: gcc 12 takes ldtilecfg for a read of eight
// bytes, lets vector stores pass tile loads, and has no name for tdpfp16ps, which is therefore
// spelled in bytes. All are volatile and keep their order; those that touch memory say so.
//
// FUSED_ATTENTION_AMX_MODEL (tests/native/amx_model.h) replaces the registers by memory and the
// instructions by what the manual says they do: so the kernels run, slowly, without AMX.
#if defined(FUSED_ATTENTION_AMX_MODEL)
#include "amx_model.h"
#endif

namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "ldtilecfg reads 64 bytes");

#if !defined(FUSED_ATTENTION_AMX_MODEL)
inline void tile_configure() {
  static constexpr TileConfig config;
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

// Back to the initial state, which a context switch need not save.
inline void tile_release() { asm volatile("tilerelease" : : : "memory"); }

template <int TILE>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}

// Rows lie `stride` bytes apart.
template <int TILE>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(TILE) : "memory");
}

template <int C, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// VEX.128.F2.0F38.W0 5C: B, inverted, in the third byte; C and A in the last.
template <int C, int A, int B>
inline void tile_dot_fp16() {
  asm volatile(".byte 0xC4, 0xE2, %c0, 0x5C, %c1" : : "i"(0x7B - 8 * B), "i"(0xC0 + 8 * C + A));
}
#endif

// Tiles are configured while one of these lives.
struct TileScope {
  TileScope() { tile_configure(); }
  ~TileScope() { tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
